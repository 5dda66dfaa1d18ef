"""Checkpoints that a crash cannot damage: folders that are there whole, with a checksum over every file.

One folder a checkpoint, `step_00001000/`, with the run's state and the snapshots that were in use, one a tower. Read
with `weights_only=True`: a checkpoint runs no code.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from negbank import files
from negbank.snapshot import Snapshot

STATE, SNAPSHOT = "state.pt", "snapshot_{}"
KEEP = 2
"""Checkpoints kept in a run directory."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read, or belongs to another run."""


def save(folder: Path, state: dict[str, Any], snapshots: Sequence[Snapshot | None]) -> Path:
    """Add the checkpoint of `state["trainer"]["step"]` to `folder` and drop all but the newest `KEEP`.

    Raises:
        CheckpointError: when the disk refuses; the checkpoints before stay as they were.
    """
    step = state["trainer"]["step"]
    final = folder / f"step_{step:08d}"
    try:
        with files.folder(final, {"step": step}, replace=True) as draft:
            torch.save(state, draft / STATE)
            for position, snapshot in enumerate(snapshots):
                if snapshot is not None:
                    snapshot.save(draft / SNAPSHOT.format(position))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        raise CheckpointError(
            f"{final}: not written ({error}); earlier checkpoints are whole: free some space, then resume the run"
        ) from error
    for old in steps(folder)[:-KEEP]:
        shutil.rmtree(folder / f"step_{old:08d}")
    return final


def steps(folder: Path) -> list[int]:
    """The steps of all whole checkpoints, ascending."""
    names = (path.name.removeprefix("step_") for path in folder.glob("step_*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def load(folder: Path, *, device: torch.device) -> tuple[dict[str, Any], list[Snapshot | None]] | None:
    """The newest checkpoint and its snapshots, one a tower, or None when there is none.

    Raises:
        CheckpointError: when a file of it is missing or changed.
    """
    found = steps(folder)
    if not found:
        return None
    path = folder / f"step_{found[-1]:08d}"
    try:
        files.manifest(path)
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip fails in many ways; each means the same to the user
        raise CheckpointError(
            f"{path / STATE}: damaged ({error}); remove {path} to resume from the checkpoint before it"
        ) from error
    names = [path / SNAPSHOT.format(position) for position in range(len(state["trainer"]["towers"]))]
    return state, [Snapshot.load(name, device=device) if name.exists() else None for name in names]
