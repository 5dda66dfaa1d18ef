"""Which rows meet in a batch: reported, and never used for training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from negbank.train.data.contract import sides
from negbank.train.hooks import Hook, Running

NEVER = -1


class Meetings(Hook):
    """What share of a batch's pairs has met before, and what share are of one class."""

    def begin(self, run: Running) -> None:
        """Nothing has met. Classes are the labels, those of the left side of pairs; −1 for a row without one."""
        data, device = sides(run.splits.train)[0], run.trainer.device
        labels = data.labels
        known = labels is not None and bool((labels >= 0).any())
        self._labels = labels.to(device) if known and labels is not None else None
        self._batch_of = torch.full((len(data),), NEVER, device=device)
        self._batches = 0

    def metrics(self, rows: Tensor) -> dict[str, float]:
        """The batch of distinct rows (B,) happens now. Shares in [0, 1], of the pairs for which they are known:

        overlap: pairs that were in one batch when both came last; the epoch before, where rows come once an epoch.
        false_negative_rate: pairs of one class, which contrast drives apart.
        """
        found = {}
        last = self._batch_of[rows]
        if bool((last != NEVER).all()):
            found["overlap"] = _same(last)
        if self._labels is not None:
            classes = self._labels[rows]
            if int((classes >= 0).sum()) > 1:
                found["false_negative_rate"] = _same(classes[classes >= 0])
        self._batch_of[rows] = self._batches
        self._batches += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """The batch every row was in last, and how many there were."""
        return {"batch_of": self._batch_of.clone(), "batches": self._batches}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self._batch_of.copy_(state["batch_of"])
        self._batches = state["batches"]


def _same(keys: Tensor) -> float:
    """Share of the pairs of keys (B,) that are equal."""
    counts = keys.unique(return_counts=True)[1]
    return float((counts * (counts - 1)).sum()) / (len(keys) * (len(keys) - 1))
