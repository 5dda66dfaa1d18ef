"""Which bank the batches of pairs are planned from: the left side's, the right side's, or both as one.

    left     queries that are alike meet          right     documents that are alike meet
    mean     rows whose l_i + r_i are alike meet

All three are rolling banks that training writes anyway, so that batches chosen by them cost no encoding. On pairs of
short and long descriptions they retrieve alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.bank import EmbeddingBank, added

LEFT, RIGHT, MEAN = "left", "right", "mean"


class MeanBank:
    """Two banks of pairs read as one, for a `Refresher`, whose `rewrite` writes where they are.

    Args:
        left, right: of as many rows and as wide.
    """

    def __init__(self, left: EmbeddingBank, right: EmbeddingBank) -> None:
        self._left, self._right = left, right

    def __len__(self) -> int:
        return len(self._left)

    @property
    def vectors(self) -> Tensor:
        """(N, D), not normalised; of opposite sides, which have no mean direction, the left one stands for both."""
        return added(self._left.vectors, self._right.vectors)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self._left.device

    @property
    def written(self) -> Tensor:
        """(N,) bool: the rows of which both sides were ever written."""
        return self._left.written & self._right.written

    def statistics(self, step: int) -> tuple[float, float, int]:
        """Those of the left bank: a step writes both sides of a row."""
        return self._left.statistics(step)
