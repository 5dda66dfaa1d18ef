"""What a trainer asks of a batch sampler beyond `torch.utils.data.Sampler`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor

from negbank.samplers.meeting import Meeting
from negbank.snapshot import Snapshot


class BatchSampler(Protocol):
    """Iterating gives one epoch, batch by batch, from where the sampler was put; iterating again gives the next one.

    An iteration that was left before its end counts for nothing: the next one gives the same batches again.
    """

    reads_snapshot: bool
    """Whether it plans from the bank's snapshot, so that one is to be built."""

    searches: bool
    """Whether it asks that snapshot's index, and not only for its rows."""

    uniform: bool
    """Whether, given one row of a batch, the others are uniform over the rest: what in-batch proposals need."""

    known: bool
    """Whether `meeting` can be asked."""

    def __iter__(self) -> Iterator[list[int]]: ...

    def __len__(self) -> int: ...

    def update(self, snapshot: Snapshot) -> None:
        """Plan from this version of the bank from now on; what was handed out stays handed out."""
        ...

    def meeting(self, rows: Tensor) -> Meeting | None:
        """How the rows (B,) of a batch met, in the order in which it was handed out; None for uniform draws."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Start epoch `epoch` from its first batch."""
        ...

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """What resumes after the last batch handed out, or after as many as the last iteration's loop has taken."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
