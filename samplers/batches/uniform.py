"""Uniform batches: each epoch is one fresh random permutation of the rows, cut into batches."""

from __future__ import annotations

from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Labels, checked
from negbank.counter import Counter
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot


class UniformBatches(Planned):
    """Every row at most once an epoch, in random order.

    `max_per_group` takes from the batches that they are uniform, and `uniform` says so.

    Args:
        num_rows: N.
        batch_size: B, rows a batch; each is seen under two views.
        groups: integer labels (N,), negative for none, of which few may meet in a batch.
        max_per_group: rows of one label that may meet in a batch; with groups.
        drop_last: the last, smaller batch of an epoch is left out; its rows, drawn at random, wait for another epoch.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: as `Planned`.
    """

    reads_snapshot = False
    uniform = True

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        groups: Annotated[Tensor | None, Labels()] = None,
        max_per_group: Count | None = None,
        drop_last: bool = True,
        counter: Counter = Counter.of(0),
    ) -> None:
        super().__init__(num_rows, batch_size, groups, max_per_group, drop_last=drop_last, counter=counter)

    def update(self, snapshot: Snapshot) -> None:
        """Nothing: uniform batches ask nothing of the bank."""
