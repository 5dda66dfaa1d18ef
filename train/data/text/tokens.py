"""What an encoder of texts is given: the token ids of several texts, one after the other, and how many each has.

    texts "a b c", "d", "e f"  →  ids (a, b, c, d, e, f), lengths (3, 1, 2)

Nothing is padded until an encoder needs it (`padded`): a bag of tokens does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from negbank.ragged import starts


class Tokens:
    """Tokens of n texts.

    Attributes:
        ids: int64 (T,), T = Σ lengths.
        lengths: int64 (n,), each at least 1.
    """

    def __init__(self, ids: Tensor, lengths: Tensor) -> None:
        self.ids, self.lengths = ids, lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: Any, *, non_blocking: bool = False) -> Tokens:
        """The same on a device."""
        return Tokens(*(each.to(device, non_blocking=non_blocking) for each in (self.ids, self.lengths)))

    def pin_memory(self) -> Tokens:
        """The same in pinned memory, as data loaders ask for it."""
        return Tokens(self.ids.pin_memory(), self.lengths.pin_memory())

    @property
    def starts(self) -> Tensor:
        """(n,): where each text begins."""
        return starts(self.lengths)

    def padded(self) -> tuple[Tensor, Tensor]:
        """Ids (n, L), 0 beyond a text's end, and which are its own: (n, L) bool; L is the longest text's length."""
        inside = torch.arange(int(self.lengths.max()), device=self.ids.device) < self.lengths[:, None]
        return self.ids.new_zeros(inside.shape).masked_scatter_(inside, self.ids), inside

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """The texts of all parts, in order."""
        return cls(torch.cat([each.ids for each in parts]), torch.cat([each.lengths for each in parts]))
