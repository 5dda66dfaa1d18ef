"""A run and its directory: train, measure, log, checkpoint, resume, and end well whatever happens.

config.yaml      the resolved configuration
metrics.jsonl    one row a logged step, refresh, evaluation and gradient error; the same bits for a resumed run, so no
                 clock in it
tensorboard/     the same, and the speed
checkpoints/     the newest two (train/checkpoint.py)
summary.json, summary.png
ablation/        what `ablation.every` asks for (train/studies/ablation/live.py)
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from negbank.train import checkpoint, report
from negbank.train.build import Assembly, build, reads_snapshot
from negbank.train.config import load, to_dict
from negbank.train.data.images import Splits
from negbank.train.hooks import Running
from negbank.train.options import Config
from negbank.train.settings import differences
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

CONFIG, METRICS, CHECKPOINTS = "config.yaml", "metrics.jsonl", "checkpoints"
OUTPUTS = (CONFIG, METRICS, CHECKPOINTS, "tensorboard", "summary.json", "summary.png", "ablation")
MAY_DIFFER = ("run.dir", "run.checkpoint_every", "run.device", "data.root", "data.memory_gb")
"""Keys in which a resumed run may differ from its checkpoint: where things are, and how often they are saved."""


class RunError(RuntimeError):
    """A run that cannot start or go on, with the remedy."""


class Stopped(Exception):
    """The run was asked to stop by a signal and has checkpointed."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: stopped at step {step}, checkpoint written")
        self.exit_code = 128 + number


def start(
    config: Config, *, overwrite: bool = False, embedder: nn.Module | None = None, splits: Splits | None = None
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
    assembly = build(config, embedder=embedder, splits=splits)
    run = _Run(folder, assembly)
    _claim(folder, assembly)
    for name in found:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
    write_config(folder, config)
    return run.run()


def resume(folder: Path, *, embedder: nn.Module | None = None, splits: Splits | None = None) -> dict[str, Any]:
    """Go on with the run in `folder` from its newest checkpoint, or from the beginning when it has none.

    Raises:
        RunError: when there is no run, or its checkpoint is of another configuration.
        CheckpointError: when the checkpoint is damaged.
    """
    assembly = build(read_config(folder), embedder=embedder, splits=splits)
    _claim(folder, assembly)
    run = _Run(folder, assembly)
    offset = run.restore() or 0
    if (folder / METRICS).exists():  # rows after the checkpoint are written again
        os.truncate(folder / METRICS, offset)
    return run.run()


def evaluate(folder: Path) -> dict[str, float]:
    """All measures of the newest checkpoint of a run.

    Raises:
        RunError: when there is no run or no checkpoint in `folder`.
    """
    run = _Run(folder, build(read_config(folder)))
    if run.restore() is None:
        raise RunError(f"{folder}: no checkpoint yet; let the run reach run.checkpoint_every steps first")
    return {**run.kept, **run.assembly.evaluator.full(), "steps": run.trainer.step_number}


def read_config(folder: Path) -> Config:
    """The configuration of the run in `folder`.

    Raises:
        RunError: when there is none.
    """
    if not (folder / CONFIG).exists():
        raise RunError(f"{folder}: no {CONFIG} in it, so no run; give the run.dir of a run that was started")
    config, _ = load(folder / CONFIG)
    config.run.dir = str(folder)
    return config


def write_config(folder: Path, config: Config) -> None:
    """Make `folder` that of a run which `resume` begins."""
    checkpoint.replace(folder / CONFIG, yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


class _Run:
    """The loop over steps, with its logs."""

    def __init__(self, folder: Path, assembly: Assembly) -> None:
        self.folder, self.assembly, self.trainer = folder, assembly, assembly.trainer
        torch.manual_seed(assembly.config.run.seed)  # for layers that know no generator, such as dropout
        self.kept: dict[str, float] = {}  # measured once, before the first step
        self.seconds = 0.0
        self._asked: int | None = None
        self._done = False
        running = Running(
            self.trainer,
            assembly.inference,
            assembly.splits,
            folder,
            assembly.steps,
            assembly.config.run.seed,
            self._log,
        )
        for hook in assembly.hooks.values():
            hook.begin(running)

    def run(self) -> dict[str, Any]:
        options, trainer, total = self.assembly.config.run, self.trainer, self.assembly.steps
        started = time.perf_counter() - self.seconds
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=trainer.step_number + 1)
        with (
            closing(self._board),
            (self.folder / METRICS).open("a") as self._metrics,
            self._signals(),
            tqdm(
                total=total,
                initial=trainer.step_number,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else 10,
            ) as bar,
        ):
            if trainer.step_number == 0:
                self.kept = self.assembly.evaluator.pixels()
                self._evaluate("untrained_")
                self._refresh()
            while trainer.step_number < total:
                metrics = trainer.step()
                for hook in self.assembly.hooks.values():
                    metrics |= hook.metrics(trainer.rows)
                step = trainer.step_number
                bar.update()
                if step % options.log_every == 0 or step == total:
                    self._log(report.STEP, {**metrics, "encodings": self._encodings()})
                    self._board.add_scalar("speed/steps_per_second", bar.format_dict["rate"] or 0.0, step)
                    bar.set_postfix(_postfix(metrics), refresh=False)
                with self._named():
                    for hook in self.assembly.hooks.values():
                        hook.after(step)
                if step < total:
                    self._refresh()
                if step % self.assembly.config.eval.every == 0 and step < total:
                    self._evaluate()
                self.seconds = time.perf_counter() - started
                if self._asked is not None:
                    self._checkpoint()
                    raise Stopped(self._asked, step)
                if step % options.checkpoint_every == 0 or step == total:
                    self._checkpoint()
            self._done = True
            final = self.assembly.evaluator.full()
            self._log(report.EVALUATION, {**final, "encodings": self._encodings()})
        self.seconds = time.perf_counter() - started
        return self._finish(final)

    def restore(self) -> int | None:
        """Take up the newest checkpoint; the bytes of metrics.jsonl it knew, or None when there is none."""
        found = checkpoint.load(self.folder / CHECKPOINTS, device=self.assembly.device)
        if found is None:
            return None
        state, snapshot = found
        _require_same(to_dict(self.assembly.config), state["config"], self.folder)
        self.trainer.load_state_dict(state["trainer"], snapshot)
        for name, hook in self.assembly.hooks.items():
            hook.load_state_dict(state["hooks"][name])
        torch.set_rng_state(state["random"])
        self.kept, self.seconds = state["kept"], state["seconds"]
        return int(state["metrics_bytes"])

    def _refresh(self) -> None:
        with self._named():
            found = self.trainer.refresh()
        if found is None:
            return
        self._log(report.REFRESH, found._asdict())
        if found.version == 0 and self.trainer.refresher is not None and self.trainer.refresher.snapshot is not None:
            tqdm.write(f"index: {self.trainer.refresher.snapshot.index.report}")

    def _evaluate(self, prefix: str = "") -> None:
        with self._named():
            found = self.assembly.evaluator.quick()
        if prefix and "knn_accuracy" in found:
            self.kept[prefix + "knn_accuracy"] = found["knn_accuracy"]
        self._log(report.EVALUATION, {**found, "encodings": self._encodings()})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        tqdm.write(f"step {self.trainer.step_number}: {shown}")

    def _encodings(self) -> int:
        """Encoder forward passes of single images so far: views, drawn rows, momentum keys, and refreshes.

        Refreshes for an ablation alone are not the method's.
        """
        refresher = self.trainer.refresher if reads_snapshot(self.assembly.config) else None
        return self.trainer.encodings + (0 if refresher is None else refresher.encodings)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """A ValueError of a refresh or an evaluation, such as an embedding that is not finite, gets its step."""
        try:
            yield
        except ValueError as error:
            raise RunError(f"step {self.trainer.step_number}: {error}") from error

    def _log(self, event: str, values: Mapping[str, Any]) -> None:
        row = {
            "event": event,
            **{k: v if _finite(v) else None for k, v in values.items()},
            "step": self.trainer.step_number,
        }
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        for key, value in values.items():
            if isinstance(value, int | float) and _finite(value):
                self._board.add_scalar(f"{event}/{key}", value, self.trainer.step_number)

    def _checkpoint(self) -> None:
        try:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise RunError(f"{self.folder / METRICS}: not written ({error}); free some space, then resume") from error
        self._board.flush()
        refresher = self.trainer.refresher
        state = {
            "config": to_dict(self.assembly.config),
            "trainer": self.trainer.state_dict(),
            "hooks": {name: hook.state_dict() for name, hook in self.assembly.hooks.items()},
            "random": torch.get_rng_state(),
            "kept": self.kept,
            "seconds": self.seconds,
            "metrics_bytes": self._metrics.tell(),
        }
        checkpoint.save(self.folder / CHECKPOINTS, state, None if refresher is None else refresher.snapshot)

    def _finish(self, final: dict[str, float]) -> dict[str, Any]:
        summary = {
            **final,
            **self.kept,
            "steps": self.trainer.step_number,
            "encodings": self._encodings(),
            "seconds": round(self.seconds, 2),
            "seconds_by_phase": {k: round(v, 3) for k, v in self.trainer.seconds.items()},
            "device": str(self.assembly.device),
            "precision": self.assembly.precision,
        }
        for hook in self.assembly.hooks.values():
            summary |= hook.finish()
        report.draw_summary(report.read_metrics(self.folder / METRICS), summary, self.folder / "summary.png")
        checkpoint.replace(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        return summary

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a checkpoint at the next step boundary; a second SIGINT stops at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self._asked is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._asked = number
            if self._done:  # in the last evaluation: the last checkpoint is written
                raise Stopped(number, self.trainer.step_number)

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread, which alone may handle signals: the caller's handlers stay
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _postfix(metrics: dict[str, float]) -> dict[str, str]:
    shown = {"loss": "loss", "acceptance_in_batch": "acc batch", "acceptance_index": "acc index"}
    return {name: f"{metrics[key]:.3f}" for key, name in shown.items() if key in metrics}


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
    bank = assembly.trainer.bank.vectors.nbytes
    weights = sum(p.nbytes for p in assembly.inference.embedder.parameters())
    needed = (checkpoint.KEEP + 1) * (3 * bank + 3 * weights) + (64 << 20)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"run.dir={folder}: {free >> 20} MiB free, the checkpoints need about {needed >> 20} MiB; "
            f"free some space or choose another run.dir"
        )


def _require_same(mine: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    shown = differences(mine, theirs, "in the checkpoint", MAY_DIFFER)
    if shown:
        raise RunError(
            f"{folder}: its checkpoint is of another configuration ({shown}); put {CONFIG} back or start anew"
        )
