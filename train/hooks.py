"""What attaches to a run: it watches the steps, adds to what they log, and leaves them as they are.

A hook is registered by name. Its constructor's arguments are the section of that name in the run's YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from negbank.train.data.contract import Splits
from negbank.train.inference import Inference
from negbank.train.trainer import Trainer


class Running(NamedTuple):
    """The run that a hook is attached to.

    inference: of each tower.
    folder: of the run; a hook writes into one of its own inside.
    steps: how many the run takes in all.
    seed: of the run.
    log: adds a row of an event to metrics.jsonl.
    """

    trainer: Trainer
    inference: Sequence[Inference]
    splits: Splits
    folder: Path
    steps: int
    seed: int
    log: Callable[[str, Mapping[str, Any]], None]


class Hook:
    """Does nothing; one that does something overrides what it needs.

    reads_snapshot: whether a snapshot of the bank must be there for it.
    """

    reads_snapshot = False

    def begin(self, run: Running) -> None:
        """Before the first step, or the first after an interruption, and before anything is written.

        Raises:
            ValueError: for what does not fit the run.
        """

    def metrics(self, rows: Tensor) -> dict[str, float]:
        """What is added to the row of a step that had rows (B,); called once a step, logged or not."""
        return {}

    def after(self, step: int) -> None:
        """After so many steps of the optimiser, before the bank is refreshed."""

    def finish(self) -> dict[str, Any]:
        """What is added to summary.json."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a run that goes on needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`, after `begin`."""
