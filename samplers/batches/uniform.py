"""Uniform batches: each epoch is one fresh random permutation of the rows, cut into batches."""

from __future__ import annotations

from negbank.samplers.batches.planned import Planned

from negbank.snapshot import Snapshot


class Uniform(Planned):
    """Every row at most once an epoch, in random order. See `Planned` for the arguments.

    `max_per_group` takes from the batches that they are uniform, and `uniform` says so.
    """

    uniform = True

    def update(self, snapshot: Snapshot) -> None:
        """Nothing: uniform batches ask nothing of the bank."""
