"""The loop over a run's steps, with its logs, checkpoints, signals, and hooks.

refresh → step → hooks → evaluation → checkpoint
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from negbank import files
from negbank.remedies import remedy
from negbank.train import checkpoint, lengthen, optim, report
from negbank.train.build import Assembly
from negbank.train.config import to_dict
from negbank.train.config.differences import differences
from negbank.train.device import settled
from negbank.train.hooks import Running

CONFIG, METRICS, CHECKPOINTS, SUMMARY = "config.yaml", checkpoint.METRICS, "checkpoints", "summary.json"


class RunError(RuntimeError):
    """A run that cannot start or go on, with the remedy."""


class Stopped(Exception):
    """The run was asked to stop by a signal and has checkpointed."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: stopped at step {step}, checkpoint written")
        self.exit_code = 128 + number


class Loop:
    """The loop over steps, with its logs."""

    def __init__(self, folder: Path, assembly: Assembly) -> None:
        self.folder, self.assembly, self.trainer = folder, assembly, assembly.trainer
        self.kept: dict[str, float] = {}  # measured once, before the first step
        self.best: dict[str, Any] = {}  # what the evaluation found that run.keep_best is highest in
        self.fruitless = 0  # evaluations since
        self.seconds = 0.0
        self._asked: int | None = None
        self._done = False
        self._due = False  # whether what follows a step was left out, as at the end of a run
        parts, seed = (assembly.inference, assembly.splits), assembly.config.run.seed
        running = Running(self.trainer, *parts, folder, steps=assembly.steps, seed=seed, log=self._log)
        for hook in assembly.hooks.values():
            hook.begin(running)
            self.trainer.watchers.append(hook.metrics)

    def run(self) -> dict[str, Any]:
        options, trainer, total = self.assembly.config.run, self.trainer, self.assembly.steps
        started = time.perf_counter() - self.seconds
        self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=trainer.step_number + 1)
        with (
            closing(self._board),
            closing(report.Metrics(self.folder / METRICS)) as self._metrics,
            handled(self._ask, signal.SIGTERM, signal.SIGINT),
            self._workers(),
            tqdm(
                total=total,
                initial=trainer.step_number,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.2 if sys.stderr.isatty() else 10,
            ) as bar,
        ):
            if trainer.step_number == 0:
                self.kept = self.assembly.evaluation.baseline()
                self._evaluate("untrained_")
                self._refresh()
            if self._due:
                self._refresh()
                if trainer.step_number % self.assembly.config.eval.every == 0:
                    self._evaluate()
            while trainer.step_number < total and not self._tired():
                metrics = trainer.step()
                step = trainer.step_number
                bar.update()
                if step % options.log_every == 0 or step == total:
                    metrics = settled(metrics)
                    self._log(report.STEP, {**metrics, "encodings": trainer.encodings})
                    self._board.add_scalar("speed/steps_per_second", bar.format_dict["rate"] or 0.0, step)
                    bar.set_postfix(_postfix(metrics), refresh=False)
                with self._named():
                    for hook in self.assembly.hooks.values():
                        hook.after(step)
                if step < total:
                    self._refresh()
                if step % self.assembly.config.eval.every == 0 and step < total:
                    self._evaluate()
                    total = step if self._tired() else total
                self.seconds = time.perf_counter() - started
                if self._asked is not None:
                    self._checkpoint()
                    raise Stopped(self._asked, step)
                if step % options.checkpoint_every == 0 or step == total:
                    self._checkpoint()
            self._done = True
            final = self.assembly.evaluation.full()
            self._log(report.EVALUATION, {**final, "encodings": trainer.encodings})
            if options.keep_best is not None and not self._tired():  # by the same measures as before
                self._judge(self.assembly.evaluation.quick())
            self._logged()
        self.seconds = time.perf_counter() - started
        return self._finish(final)

    def restore(self, passed_over: Callable[[str], None] | None = None, *, best: bool = False) -> bytes | None:
        """Take up the newest checkpoint; what it knew of metrics.jsonl, or None when there is none.

        Args:
            passed_over: see `negbank.train.checkpoint.load`.
            best: the best one instead, which is to be looked at and not to be gone on from.
        """
        folder, device = self.folder / CHECKPOINTS, self.assembly.device
        found = (
            checkpoint.load_best(folder, device=device)
            if best
            else checkpoint.load(folder, device=device, passed_over=passed_over)
        )
        if found is None:
            return None
        state, snapshots, metrics = found
        mine, theirs = (lengthen.without_length(each) for each in (to_dict(self.assembly.config), state["config"]))
        differ = differences(mine, theirs, "in the checkpoint")
        if differ:
            raise RunError(
                f"{self.folder}: its checkpoint is of another configuration ({differ}); put {CONFIG} back or start anew"
            )
        self._lengthen(state["trainer"]["step"], state["total"])
        self.trainer.load_state_dict(state["trainer"], snapshots)
        for name, hook in self.assembly.hooks.items():
            hook.load_state_dict(state["hooks"][name])
        self.kept, self.seconds = state["kept"], state["seconds"]
        self.best, self.fruitless = state["best"], state["fruitless"]
        return metrics

    def _lengthen(self, step: int, before: int) -> None:
        """Go on from a checkpoint of a run of `before` steps, which may be another number than this one's."""
        total, descent = self.assembly.steps, self.trainer.descent
        if total < step:
            raise RunError(
                f"{self.folder}: run.steps is {total}, and its checkpoint is of step {step}; set {step} or more"
            )
        if total != before:
            then = optim.factor(self.assembly.config.optim, step, before)
            rates = (then, descent.schedule(step))
            tqdm.write(
                f"note: {lengthen.said(self.assembly.config, step=step, before=before, total=total, rates=rates)}"
            )
        self._due = step == before < total

    def _refresh(self) -> None:
        with self._named():
            found = self.trainer.refresh()
        for name, refresher, done in found:
            self._log(report.REFRESH, done._asdict() | ({"tower": name} if name else {}))
            if done.version == 0 and refresher.snapshot is not None:
                tqdm.write(f"index{' of ' * bool(name)}{name}: {refresher.snapshot.index.report}")

    def _evaluate(self, prefix: str = "") -> None:
        with self._named():
            found = self.assembly.evaluation.quick()
        if prefix:
            self.kept |= {prefix + name: found[name] for name in report.UNTRAINED if name in found}
        self._log(report.EVALUATION, {**found, "encodings": self.trainer.encodings})
        shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        tqdm.write(f"step {self.trainer.step_number}: {shown}")
        self._judge(found)

    def _judge(self, found: Mapping[str, float]) -> None:
        """Keep the checkpoint of this step if its evaluation is the best so far.

        Raises:
            RunError: for a measure that the evaluation does not have.
        """
        name = self.assembly.config.run.keep_best
        if name is None:
            return
        measure, sign = name.removeprefix("-"), -1 if name.startswith("-") else 1
        if measure not in found:
            raise RunError(f"run.keep_best={name}: eval measures {', '.join(found)}; take one of these")
        if self.trainer.step_number == 0:  # untrained
            return
        self.fruitless += 1
        if not self.best or sign * found[measure] > sign * self.best[measure]:
            self.best = {**found, "step": self.trainer.step_number, "encodings": self.trainer.encodings}
            self.fruitless = 0
            checkpoint.save_best(self.folder / CHECKPOINTS, self._state(), self.trainer.snapshots(), self._logged())

    def _tired(self) -> bool:
        """Whether so many evaluations have found nothing better that the run is to end."""
        patience = self.assembly.config.run.patience
        return patience is not None and self.fruitless >= patience

    @contextmanager
    def _workers(self) -> Iterator[None]:
        """A worker's death, which torch's signal handler may tell of anywhere, gets its remedy."""
        try:
            yield
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            raise RunError(
                f"step {self.trainer.step_number}: {str(error).splitlines()[0]} It may have run out of memory or of "
                f"/dev/shm: lower data.workers in {self.folder / CONFIG}, then resume the run"
            ) from error

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
        self._metrics.write(row)
        for key, value in values.items():
            if isinstance(value, int | float) and _finite(value):
                self._board.add_scalar(f"{event}/{key}", value, self.trainer.step_number)

    def _logged(self) -> bytes:
        """All that was logged, as the disk now holds it."""
        try:
            return self._metrics.whole()
        except files.DamagedError as error:
            raise RunError(str(error)) from None
        except OSError as error:
            raise RunError(f"{self.folder / METRICS}: not written ({remedy(error)}); then resume the run") from error

    def _checkpoint(self) -> None:
        metrics = self._logged()
        self._board.flush()
        checkpoint.save(self.folder / CHECKPOINTS, self._state(), self.trainer.snapshots(), metrics)

    def _state(self) -> dict[str, Any]:
        return {
            "config": to_dict(self.assembly.config),
            "total": self.assembly.steps,
            "trainer": self.trainer.state_dict(),
            "hooks": {name: hook.state_dict() for name, hook in self.assembly.hooks.items()},
            "kept": self.kept,
            "best": self.best,
            "fruitless": self.fruitless,
            "seconds": self.seconds,
        }

    def _finish(self, final: dict[str, float]) -> dict[str, Any]:
        summary = {
            **final,
            **self.kept,
            **{f"best_{name}": value for name, value in self.best.items()},
            "steps": self.trainer.step_number,
            "encodings": self.trainer.encodings,
            "seconds": round(self.seconds, 2),
            "seconds_by_phase": {k: round(v, 3) for k, v in self.trainer.seconds.items()},
            "device": str(self.assembly.device),
            "precision": self.assembly.precision,
        }
        for hook in self.assembly.hooks.values():
            summary |= hook.finish()
        report.draw_summary(report.read_metrics(self.folder / METRICS), summary, self.folder / "summary.png")
        files.write(self.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
        files.seal(self.folder, {"is": "a finished run", "steps": self.trainer.step_number}, (METRICS, SUMMARY))
        return summary

    def _ask(self, number: int, frame: FrameType | None) -> None:
        """A signal asks for a checkpoint at the next step boundary; a second SIGINT stops at once."""
        if self._asked is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = number
        if self._done:  # in the last evaluation: the last checkpoint is written
            raise Stopped(number, self.trainer.step_number)


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Signals go to a handler inside; but not in threads other than the main one, which alone may handle them."""
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _postfix(metrics: dict[str, float]) -> dict[str, str]:
    shown = {"loss": "loss", "acceptance_in_batch": "acc batch", "acceptance_index": "acc index"}
    return {name: f"{metrics[key]:.3f}" for key, name in shown.items() if key in metrics}
