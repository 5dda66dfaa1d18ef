"""A run and its directory: train, measure, log, checkpoint, resume, and end well whatever happens.

config.yaml      the resolved configuration
metrics.jsonl    one row a logged step, refresh, evaluation and what a hook measures; the same bits for a resumed run,
                 so no clock in it
tensorboard/     the same, and the speed
checkpoints/     the newest two (train/checkpoint.py)
summary.json, summary.png
                 and a folder of every hook that writes one, under its name
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn
from tqdm import tqdm

from negbank import files
from negbank.train import checkpoint, lengthen, registry
from negbank.train.build import Assembly, build
from negbank.train.config import load, to_dict
from negbank.train.config.differences import differences
from negbank.train.data.contract import Splits
from negbank.train.loop import CHECKPOINTS, CONFIG, METRICS, Loop, RunError

OUTPUTS = (CONFIG, METRICS, CHECKPOINTS, "tensorboard", "summary.json", "summary.png", *registry.names("hook"))


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
    found = [name for name in OUTPUTS if (folder / name).exists()]
    if found and not overwrite:
        raise RunError(
            f"run.dir={folder} holds a run already ({', '.join(found)}); resume it with "
            f"`negbank train --resume {folder}`, replace it with --overwrite, or choose another run.dir"
        )
    assembly = _built(config, encoder, splits, keep)
    loop = Loop(folder, assembly)
    _claim(folder, assembly)
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

    Args:
        overrides: changes to its configuration: how long it is (run.steps, run.epochs; see `negbank.train.lengthen`),
            and what `negbank.train.config.differences.MAY_DIFFER` lists.

    Raises:
        RunError: when there is no run, or its checkpoint is of another configuration.
        CheckpointError: when the checkpoint is damaged.
    """
    config = read_config(folder, overrides)
    assembly = _built(config, encoder, splits, keep)
    run = Loop(folder, assembly)
    _claim(folder, assembly)
    offset = run.restore() or 0
    if overrides:
        write_config(folder, config)
    if (folder / METRICS).exists():  # rows after the checkpoint are written again
        os.truncate(folder / METRICS, offset)
    return run.run()


def _built(config: Any, encoder: Modules, splits: Splits | None, keep: list[nn.Module] | None) -> Assembly:
    """`build`, with what it has to say said, and its encoders added to `keep`."""
    assembly = build(config, encoder=encoder, splits=splits)
    for note in assembly.notes:
        tqdm.write(f"note: {note}")
    if keep is not None:
        keep += dict.fromkeys(each.encoder for each in assembly.inference)
    return assembly


def evaluate(folder: Path) -> dict[str, float]:
    """All measures of the newest checkpoint of a run.

    Raises:
        RunError: when there is no run or no checkpoint in `folder`.
    """
    run = Loop(folder, build(read_config(folder)))
    if run.restore() is None:
        raise RunError(f"{folder}: no checkpoint yet; let the run reach run.checkpoint_every steps first")
    return {**run.kept, **run.assembly.evaluation.full(), "steps": run.trainer.step_number}


def read_config(folder: Path, overrides: Sequence[str] = ()) -> Any:
    """The configuration of the run in `folder`, with changes that a run may go on with.

    Raises:
        RunError: when there is none, or for a change that would make another run of it.
    """
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder}: no {CONFIG} in it, so no run; give the run.dir of a run that was started")
    config, _ = load(folder / CONFIG, overrides)
    if overrides:
        before = lengthen.without_length(to_dict(load(folder / CONFIG)[0]))
        if differ := differences(lengthen.without_length(to_dict(config)), before, "there"):
            raise RunError(f"{folder}: goes on as it was begun ({differ}); leave it out, or begin another run")
    config.run.dir = str(folder)
    return config


def write_config(folder: Path, config: Any) -> None:
    """Make `folder` that of a run which `resume` begins."""
    files.write(folder / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def _claim(folder: Path, assembly: Assembly) -> None:
    """Make sure before training that the directory can be written and will hold the checkpoints.

    Raises:
        RunError: naming the folder and what is missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise RunError(f"run.dir={folder}: not writable ({error.strerror}); choose another run.dir") from None
    bank = sum(tower.bank.vectors.nbytes for tower in assembly.trainer.towers)
    weights = sum(p.nbytes for each in assembly.inference for p in each.encoder.parameters())
    needed = (checkpoint.KEEP + 1) * (3 * bank + 3 * weights) + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"run.dir={folder}: {free >> 20} MiB free, the checkpoints need about {needed >> 20} MiB; "
            f"free some space or choose another run.dir"
        )
