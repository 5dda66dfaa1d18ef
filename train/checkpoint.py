"""Checkpoints that a crash cannot damage: written under a temporary name, synced, renamed.

One folder a checkpoint, `step_00001000/`, with the run's state and the snapshot that was in use. It becomes visible by
one rename, so that whatever carries the name is whole. Read with `weights_only=True`: a checkpoint runs no code.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from negbank import Snapshot
from negbank.files import sync

STATE, SNAPSHOT = "state.pt", "snapshot"
KEEP = 2
"""Checkpoints kept in a run directory."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be read, or belongs to another run."""


def replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole or as it was."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.rename(path)


def save(folder: Path, state: dict[str, Any], snapshot: Snapshot | None) -> Path:
    """Add the checkpoint of `state["trainer"]["step"]` to `folder` and drop all but the newest `KEEP`.

    Raises:
        CheckpointError: when the disk refuses; the checkpoints before stay as they were.
    """
    final = folder / f"step_{state['trainer']['step']:08d}"
    draft = folder / (final.name + ".tmp")
    try:
        for left in (*folder.glob("*.tmp"), draft):  # of a process that was killed while it wrote
            shutil.rmtree(left, ignore_errors=True)
        draft.mkdir(parents=True)
        torch.save(state, draft / STATE)
        if snapshot is not None:
            snapshot.save(draft / SNAPSHOT)
        sync(draft / STATE)
        sync(draft)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        sync(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        shutil.rmtree(draft, ignore_errors=True)
        raise CheckpointError(
            f"{final}: not written ({error}); earlier checkpoints are whole: free some space, then resume the run"
        ) from error
    for old in steps(folder)[:-KEEP]:
        shutil.rmtree(folder / f"step_{old:08d}")
    return final


def steps(folder: Path) -> list[int]:
    """The steps of all whole checkpoints, ascending."""
    return sorted(int(p.name[5:]) for p in folder.glob("step_????????") if p.is_dir())


def load(folder: Path, *, device: torch.device) -> tuple[dict[str, Any], Snapshot | None] | None:
    """The newest checkpoint and its snapshot, or None when there is none.

    Raises:
        CheckpointError: when its state is damaged. A damaged snapshot raises `DamagedSnapshotError`.
    """
    found = steps(folder)
    if not found:
        return None
    path = folder / f"step_{found[-1]:08d}"
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged zip fails in many ways; each means the same to the user
        raise CheckpointError(
            f"{path / STATE}: damaged ({error}); remove {path} to resume from the checkpoint before it"
        ) from error
    snapshot = Snapshot.load(path / SNAPSHOT, device=device) if (path / SNAPSHOT).exists() else None
    return state, snapshot
