"""Uniform batches: each epoch is one fresh random permutation of the rows, cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Sampler

from negbank.snapshot import Snapshot


class Uniform(Sampler[list[int]]):
    """Every row at most once an epoch, in random order.

    Args:
        num_rows: N.
        batch_size: B.
        drop_last: leave out the last, smaller batch of an epoch (whose rows then wait for another epoch).
        generator: gives the seed of all permutations, once; torch's default generator without it.

    Raises:
        ValueError: for a batch size outside 2..N: contrast needs a second row.
    """

    uniform = True

    def __init__(
        self, num_rows: int, batch_size: int, *, drop_last: bool = True, generator: torch.Generator | None = None
    ) -> None:
        if not 2 <= batch_size <= num_rows:
            raise ValueError(f"batch_size={batch_size}: expected 2..{num_rows}, the rows of the data set")
        self.num_rows, self.batch_size, self.drop_last = num_rows, batch_size, drop_last
        self._seed = int(torch.randint(2**62, (), generator=generator))
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(self.num_rows, self.batch_size)
        return whole + (0 if self.drop_last or rest < 2 else 1)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.num_rows, generator=torch.Generator().manual_seed(self._seed + self._epoch))
        epoch = self._epoch
        while self._epoch == epoch and self._position < len(self):
            start = self._position * self.batch_size
            self._position += 1
            yield order[start : start + self.batch_size].tolist()
        if self._epoch == epoch:
            self.set_epoch(epoch + 1)

    def update(self, snapshot: Snapshot) -> None:
        """Nothing: uniform batches ask nothing of the bank."""

    def set_epoch(self, epoch: int) -> None:
        """Start epoch `epoch` from its first batch."""
        self._epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """The seed, the epoch, and the batches handed out of it."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch handed out."""
        self._seed, self._epoch, self._position = state["seed"], state["epoch"], state["position"]
