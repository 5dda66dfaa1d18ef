"""A run and its directory: train, measure, log, checkpoint, resume, and end well whatever happens.

One process at a time trains in it (`negbank.owner`).

config.yaml      the resolved configuration
metrics.jsonl    one row a logged step, refresh, evaluation and what a hook measures; the same bits for a resumed run,
                 so no clock in it
tensorboard/     the same, and the speed
checkpoints/     the newest two (train/checkpoint.py)
summary.json, summary.png
manifest.json    when all is done: the checksums of summary.json and metrics.jsonl
                 and a folder of every hook that writes one, under its name
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from tqdm import tqdm

from negbank import files
from negbank.owner import OwnedError, owned, sweep
from negbank.remedies import remedy
from negbank.train import checkpoint, lengthen, registry
from negbank.train.build import Assembly, build
from negbank.train.config import load, to_dict
from negbank.train.config.differences import differences
from negbank.train.data.contract import Splits
from negbank.train.loop import CHECKPOINTS, CONFIG, METRICS, SUMMARY, Loop, RunError

FILES = (CONFIG, files.MANIFEST, METRICS, SUMMARY, "summary.png")
OUTPUTS = (*FILES, CHECKPOINTS, "tensorboard", *registry.names("hook"))


Modules = nn.Module | Sequence[nn.Module] | None
"""Your own encoder instead of the configuration's; of pairs two, or one for both."""


def start(
    config: Any,
    *,
    overwrite: bool = False,
    encoder: Modules = None,
    splits: Splits | None = None,
    keep: list[nn.Module] | None = None,
) -> dict[str, Any]:
    """Train from the beginning in `config.run.dir`; the summary.

    Raises:
        RunError: when the directory holds a run already, or cannot be written.
        ValueError: for what does not fit the data (`negbank.train.build.build`).
        Stopped: after a signal, once the checkpoint is written.
    """
    folder = Path(config.run.dir)
    with _claimed(folder):
        found = [name for name in OUTPUTS if (folder / name).exists()]
        if found and not overwrite:
            raise RunError(
                f"run.dir={folder} holds a run already ({', '.join(found)}); resume it with "
                f"`negbank train --resume {folder}`, replace it with --overwrite, or choose another run.dir"
            )
        assembly = _built(config, encoder, splits, keep)
        loop = Loop(folder, assembly)
        _require_space(folder, assembly)
        _tidy(folder)
        for name in found:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink()
        write_config(folder, config)
        return loop.run()


def resume(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    encoder: Modules = None,
    splits: Splits | None = None,
    keep: list[nn.Module] | None = None,
) -> dict[str, Any]:
    """Go on with the run in `folder` from its newest checkpoint, or from the beginning when it has none.

    A checkpoint that is damaged is passed over, with a word about it: what followed the one before is computed again.

    Args:
        overrides: changes to its configuration: how long it is (run.steps, run.epochs; see `negbank.train.lengthen`),
            and what `negbank.train.config.differences.MAY_DIFFER` lists.

    Raises:
        RunError: when there is no run, or its checkpoint is of another configuration.
        CheckpointError: when every checkpoint is damaged.
        OwnedError: when another process trains there.
    """
    config = read_config(folder, overrides)
    with _claimed(folder):
        assembly = _built(config, encoder, splits, keep)
        run = Loop(folder, assembly)
        _require_space(folder, assembly)
        _tidy(folder)
        metrics = run.restore(lambda damage: tqdm.write(f"note: {damage}"))
        if overrides:
            write_config(folder, config)
        (folder / files.MANIFEST).unlink(missing_ok=True)  # it has not finished
        files.write(folder / METRICS, metrics or b"")  # rows after the checkpoint are written again
        return run.run()


def _built(config: Any, encoder: Modules, splits: Splits | None, keep: list[nn.Module] | None) -> Assembly:
    """`build`, with what it has to say said, and its encoders added to `keep`."""
    assembly = build(config, encoder=encoder, splits=splits)
    for note in assembly.notes:
        tqdm.write(f"note: {note}")
    if keep is not None:
        keep += dict.fromkeys(each.encoder for each in assembly.inference)
    return assembly


def restored(folder: Path, *, best: bool = False) -> Loop:
    """The run in `folder` as it was at its newest checkpoint, or at the best one.

    Raises:
        RunError: when there is no run or no such checkpoint.
    """
    run = Loop(folder, build(read_config(folder)))
    if run.restore(best=best) is None:
        needed = "a run with run.keep_best has one" if best else "let the run reach run.checkpoint_every steps first"
        raise RunError(f"{folder}: no {'best ' * best}checkpoint yet; {needed}")
    return run


def evaluate(folder: Path, *, best: bool = False) -> dict[str, float]:
    """All measures of the newest checkpoint of a run, or of the best one.

    Raises:
        RunError: when there is no run or no such checkpoint in `folder`.
    """
    run = restored(folder, best=best)
    return {**run.kept, **run.assembly.evaluation.full(), "steps": run.trainer.step_number}


def read_config(folder: Path, overrides: Sequence[str] = ()) -> Any:
    """The configuration of the run in `folder`, with changes that a run may go on with.

    Raises:
        RunError: when there is none, or for a change that would make another run of it.
    """
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder}: no {CONFIG} in it, so no run; give the run.dir of a run that was started")
    config, _ = load(folder / CONFIG, overrides, inputs=True)
    if overrides:
        before = lengthen.without_length(to_dict(load(folder / CONFIG)[0]))
        if differ := differences(lengthen.without_length(to_dict(config)), before, "there"):
            raise RunError(f"{folder}: goes on as it was begun ({differ}); leave it out, or begin another run")
    config.run.dir = str(folder)
    return config


def write_config(folder: Path, config: Any) -> None:
    """Make `folder` that of a run which `resume` begins."""
    files.write(folder / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Nobody else trains in the directory, which can be written.

    Raises:
        OwnedError: naming the process that does.
        RunError: when it cannot be written.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(owned(folder))
        except OwnedError as error:
            raise OwnedError(f"run.dir={error}") from None
        except OSError as error:
            raise RunError(f"run.dir={folder}: not writable ({remedy(error)}); choose another run.dir") from None
        yield


def _tidy(folder: Path) -> None:
    """Remove what a kill has left of files that were being written."""
    for name in FILES:
        sweep(folder, name + files.DRAFT)
    checkpoint.tidy(folder / CHECKPOINTS)


def _require_space(folder: Path, assembly: Assembly) -> None:
    """Make sure before training that the directory will hold the checkpoints.

    Raises:
        RunError: with what is missing.
    """
    bank = sum(tower.bank.vectors.nbytes for tower in assembly.trainer.towers)
    weights = sum(p.nbytes for each in assembly.inference for p in each.encoder.parameters())
    needed = (checkpoint.KEEP + 1) * (3 * bank + 3 * weights) + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"run.dir={folder}: {free >> 20} MiB free, the checkpoints need about {needed >> 20} MiB; "
            f"free some space or choose another run.dir"
        )
