"""Checkpoints that a crash cannot damage: folders that are there whole, with a checksum over every file.

One folder a checkpoint, `step_00001000/`, and `best/` where a run keeps its best one, with the run's state, the rows of
metrics.jsonl up to it, and the snapshots that were in use, one a refresher. Read with `weights_only=True`: a checkpoint
runs no code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from negbank import files
from negbank.owner import sweep
from negbank.remedies import remedy
from negbank.snapshot import Snapshot

STATE, METRICS, SNAPSHOT = "state.pt", "metrics.jsonl", "snapshot_{}"
BEST = "best"
KEEP = 2
"""Checkpoints kept in a run directory."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read, or belongs to another run."""


class Checkpoint(NamedTuple):
    """The state of a run, its snapshots, one a refresher, and the bytes of metrics.jsonl up to it."""

    state: dict[str, Any]
    snapshots: list[Snapshot | None]
    metrics: bytes


def save(folder: Path, state: dict[str, Any], snapshots: Sequence[Snapshot | None], metrics: bytes) -> Path:
    """Add the checkpoint of `state["trainer"]["step"]` to `folder` and drop all but the newest `KEEP`.

    One of a later step, which the run did not go on from because it is damaged, is dropped as well.

    Raises:
        CheckpointError: when the disk refuses; the checkpoints before stay as they were.
    """
    step = state["trainer"]["step"]
    final = _write(_path(folder, step), state, snapshots, metrics)
    found = steps(folder)
    for old in (each for each in found if each > step or each in found[: found.index(step)][: 1 - KEEP]):
        files.remove(_path(folder, old))
    return final


def save_best(folder: Path, state: dict[str, Any], snapshots: Sequence[Snapshot | None], metrics: bytes) -> Path:
    """Put the checkpoint in the place of the best one so far. A kill may lose that; the run comes by here again.

    Raises:
        CheckpointError: when the disk refuses.
    """
    return _write(folder / BEST, state, snapshots, metrics)


def load_best(folder: Path, *, device: torch.device) -> Checkpoint | None:
    """The best checkpoint, or None when there is none.

    Raises:
        CheckpointError: when a file of it is missing or changed, or cannot be read.
    """
    path = folder / BEST
    if not path.exists():
        return None
    try:
        return _read(path, device)
    except files.DamagedError as error:
        raise CheckpointError(f"{error}; remove {path}, or take the newest checkpoint") from None
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{error.filename or path}: not readable ({remedy(error)})")


def _write(final: Path, state: dict[str, Any], snapshots: Sequence[Snapshot | None], metrics: bytes) -> Path:
    try:
        if final.exists():
            files.remove(final)
        with files.folder(final, {"step": state["trainer"]["step"]}) as draft:
            torch.save(state, draft / STATE)
            (draft / METRICS).write_bytes(metrics)
            for position, snapshot in enumerate(snapshots):
                if snapshot is not None:
                    snapshot.save(draft / SNAPSHOT.format(position))
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError of its zip writer
        cause = remedy(error) if isinstance(error, OSError) else f"{error}; free some space"
        raise CheckpointError(
            f"{final}: not written ({cause}); earlier checkpoints are whole: see to it, then resume the run"
        ) from error
    return final


def steps(folder: Path) -> list[int]:
    """The steps of all checkpoints, ascending; whether they are whole, `load` finds out."""
    names = (path.name.removeprefix("step_") for path in folder.glob("step_*") if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def tidy(folder: Path) -> None:
    """Remove what a kill has left of a checkpoint that was being written or removed."""
    for name in ("step_*", BEST):
        sweep(folder, name + files.DRAFT)


def load(folder: Path, *, device: torch.device, passed_over: Callable[[str], None] | None = None) -> Checkpoint | None:
    """The newest checkpoint, or None when there is none.

    Args:
        passed_over: told of a damaged one, after which the one before it is taken; None: that is an error.

    Raises:
        CheckpointError: when a file of it is missing or changed, and of every earlier one, or cannot be read.
    """
    found = steps(folder)
    for step in reversed(found):
        path = _path(folder, step)
        try:
            return _read(path, device)
        except (files.DamagedError, OSError, CheckpointError) as error:
            if not path.exists():  # the run is going on, and has dropped it in the meantime
                return load(folder, device=device, passed_over=passed_over)
            if isinstance(error, CheckpointError):
                raise
            if isinstance(error, OSError):
                raise _unreadable(path, error) from error
            if step == found[0]:
                raise CheckpointError(
                    f"{error}, as every checkpoint is; remove {folder} to begin the run again"
                ) from None
            if passed_over is None:
                raise CheckpointError(f"{error}; remove {path} to resume from the checkpoint before it") from None
            passed_over(f"{error}; going on from the checkpoint before it")
    return None


def _read(path: Path, device: torch.device) -> Checkpoint:
    files.manifest(path)
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
        names = [path / SNAPSHOT.format(position) for position in range(len(state["trainer"]["refreshers"]))]
    except Exception as error:  # torch and pickle say in many ways that a file is of another version
        raise CheckpointError(
            f"{path / STATE}: whole, but not readable ({error}); resume with the versions that wrote it"
        ) from error
    snapshots = [Snapshot.load(name, device=device) if name.exists() else None for name in names]
    return Checkpoint(state, snapshots, (path / METRICS).read_bytes())


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}"
