"""A comparison from beginning to end: learning rates, equal steps, equal encodings, with tables after every run."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import yaml

from negbank import files
from negbank.bounds import Annotated, Count, Ge, Positive, checked
from negbank.owner import owned
from negbank.train.build import build, load_data
from negbank.train.config import ConfigError
from negbank.train.device import choose_device
from negbank.train.loop import handled
from negbank.train.report import NAMES
from negbank.train.studies.compare import report
from negbank.train.studies.compare.figures import draw_accuracy
from negbank.train.studies.compare.methods import method_configs
from negbank.train.studies.compare.processes import CompareError, diverged, execute, finished, prepare
from negbank.train.studies.compare.results import curve, gradients, judged_by, rows, summarise
from negbank.train.studies.compare.trials import ENCODINGS, STEPS, Curve, Plan, Trial
from negbank.train.studies.rows import write_csv


@checked
def run(
    *,
    base: dict[str, Any],
    methods: dict[str, Any],
    reference: str | None = None,
    seeds: tuple[Annotated[int, Ge(0)], ...] = (0, 1, 2),
    lr: tuple[Positive, ...] = (1e-3,),
    tune_seed: Annotated[int, Ge(0)] | None = None,
    equal: tuple[Literal["steps", "encodings"], ...] = ("steps", "encodings"),
    gradient_error: dict[str, Any] | None = None,
    out: str = "runs/compare",
    jobs: Count = 1,
) -> str:
    """Run a comparison into its folder, or go on with it; the table of what it found.

    Everything is drawn from the folders of its runs: called for one that has finished, it writes the results anew.

    Args:
        base: a run's configuration with run.steps: what all methods have in common.
        methods: name: what differs from base, such as {simclr: {negatives: {type: in_batch}}}.
        reference: the method whose encodings are the budget of equal encodings; None: the first.
        seeds: run.seed of the repetitions.
        lr: optim.lr, for all methods alike; of several each has its best.
        tune_seed: run.seed of the runs that choose among several lr; none of seeds.
        equal: what is equal between methods.
        gradient_error: that section of a run, for those of the first seed at equal steps.
        out: folder of the runs and the results.
        jobs: runs at once, each with its share of the cores; timings can be compared with 1 only.

    Raises:
        ConfigError: for a method's configuration, or what of it does not fit the data, before anything runs.
        OwnedError: when another process runs one in `out`.
        CompareError: for a run of another configuration in a trial's folder, or one that fails.
    """
    settings = {
        "base": base, "methods": methods, "reference": reference, "seeds": list(seeds), "lr": list(lr),
        "tune_seed": tune_seed, "equal": list(equal), "gradient_error": gradient_error, "out": out, "jobs": jobs,
    }  # fmt: skip
    plan = Plan(
        method_configs(base, methods), out, seeds=seeds, lr=lr, tune_seed=tune_seed, reference=reference,
        gradient_error=gradient_error,
    )  # fmt: skip
    work = _Work(plan, equal, Path(out), jobs, settings)
    with handled(_stop, signal.SIGTERM), owned(Path(out)):
        work.run()
    found = rows(work.trials)
    averages = summarise(found, plan.reference)
    return "\n".join((report.text_table(averages), *report.edges(found, averages)))


class _Work:
    """The trials so far known, and how many more there will be at most."""

    def __init__(self, plan: Plan, equal: Sequence[str], folder: Path, jobs: int, settings: Mapping[str, Any]) -> None:
        self.plan, self.equal, self.folder, self.jobs, self.settings = plan, equal, folder, jobs, settings
        self.checked = False
        self.trials: list[Trial] = []
        self.left = 0  # trials that are not known yet
        self.started, self.executed = time.perf_counter(), 0

    def run(self) -> None:
        plan, seeds = self.plan, self.plan.seeds
        equal_steps, equal_encodings = (name in self.equal for name in (STEPS, ENCODINGS))
        tuning = plan.tuning()
        self._expect(len(plan.configs), equal_steps, equal_encodings)
        self._complete(tuning)
        rates = self._rates(tuning)
        self._expect(len(rates), equal_steps, equal_encodings)
        steps = plan.steps(rates)
        if equal_steps:
            self.left -= len(steps)
            self._complete(steps)
        if equal_encodings:
            chosen = [trial for trial in tuning if rates.get(trial.method) == trial.lr]
            measured = self._measure([chosen, *([trial for trial in steps if trial.seed == seed] for seed in seeds)])
            lost = [trial._replace(budget=ENCODINGS) for trial in steps if trial.method not in measured]
            self.left = 0
            self._complete([*plan.encodings(rates, measured), *lost])

    def _expect(self, methods: int, equal_steps: bool, equal_encodings: bool) -> None:
        """Count the trials of so many methods; the reference's equal encodings are its equal steps."""
        self.left = len(self.plan.seeds) * (methods * equal_steps + (methods - equal_steps) * equal_encodings)

    def _rates(self, tuning: Sequence[Trial]) -> Mapping[str, float]:
        """Each method's learning rate: the only one, or that of the best (`judged_by`), the lower one of equals.

        A method that diverged at every one is left out.
        """
        if not tuning:
            return {method: self.plan.lr[0] for method in self.plan.configs}
        rates: dict[str, float] = {}
        for method in self.plan.configs:
            found = [row for row in rows([c for c in tuning if c.method == method]) if not row["diverged"]]
            tried = ", ".join(f"{lr:g}" for lr in self.plan.lr)
            if not found:
                print(f"{method}: left out, it diverged at every lr of {tried}", flush=True)
                continue
            judge = judged_by(found)[0]
            if math.isnan(found[0][judge]):
                raise CompareError(f"{method}: no kNN accuracy to choose lr by, the data has no labels; give one lr")
            rates[method] = min(found, key=lambda row: (-row[judge], row["lr"]))["lr"]
            print(f"{method}: lr {rates[method]:g} of {tried}", flush=True)
        if not rates:
            raise CompareError(f"lr={self.plan.lr}: every method diverged at every one; give lower ones")
        return rates

    def _measure(self, rounds: Iterable[Sequence[Trial]]) -> Mapping[str, Curve]:
        """Encodings of each method over base.run.steps steps, by its first run that did not diverge.

        Args:
            rounds: runs of the methods; those of a later round are looked at only where all before diverged.
        """
        measured: dict[str, Curve] = {}
        for trials in rounds:
            trials = [trial for trial in trials if trial.method not in measured]
            self._complete([trial for trial in trials if not finished(trial)], shown=False)
            measured |= {trial.method: curve(trial) for trial in trials if diverged(trial) is None}
        if self.plan.reference not in measured:
            raise CompareError(
                f"{self.plan.reference}: the reference diverged with every seed, so that no encodings can be equal to "
                f"its; lower lr, or name another reference"
            )
        return measured

    def _complete(self, trials: Sequence[Trial], *, shown: bool = True) -> None:
        """Run those of `trials` that are not finished; with `shown` they are part of the results."""
        waiting = [trial for trial in trials if not finished(trial)]
        if waiting and not self.checked:
            require_fitting(self.plan.configs)
            self.checked = True
        prepare(trials)
        self.trials += trials if shown else []
        if len(waiting) < len(trials):
            print(f"{len(trials) - len(waiting)} of {len(trials)} runs are finished already", flush=True)
        with closing(execute(waiting, self.jobs)) as done:
            for k, trial in enumerate(done, 1):
                self.executed += 1
                self._progress(trial, len(waiting) - k + self.left)
                self._write(report_too=False)
        self._write(report_too=True)

    def _progress(self, trial: Trial, left: int) -> None:
        row = rows([trial])[0]
        judge = judged_by([row])[0]
        found = "diverged" if row["diverged"] else f"{NAMES[judge]} {row[judge]:.4f}, {row['ms_step']:.1f} ms a step"
        seconds = (time.perf_counter() - self.started) / self.executed * left
        clock = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
        print(f"{trial}: {found}; {left} to go, about {clock}", flush=True)

    def _write(self, *, report_too: bool) -> None:
        """The tables of what is finished, and the report of it."""
        found = rows(self.trials)
        averages, measured = summarise(found, self.plan.reference), gradients(self.trials)
        for name, table in (("results", found), ("summary", averages), ("gradient", measured)):
            if table:
                write_csv(table, self.folder / f"{name}.csv")
        if averages and report_too:  # not tuning runs alone
            settings = yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)
            files.write(self.folder / "compare.yaml", settings)
            draw_accuracy(self.trials, averages, self.folder / "accuracy.png")
            report.write(self.folder, found, averages, measured, self.settings)


def require_fitting(configs: Mapping[str, Any]) -> None:
    """Make the objects of every method's run once, on the CPU and over the same data, and drop them again.

    Raises:
        ConfigError: with what `negbank.train.build.build` says of each method.
    """
    splits, problems = load_data(next(iter(configs.values()))), []
    for name, config in configs.items():
        try:
            choose_device(config.run.device)
            on_cpu = config.model_copy(deep=True)
            on_cpu.run.device = "cpu"
            build(on_cpu, splits=splits)
        except ValueError as error:
            problems.append(f"methods.{name}: {error}")
    if problems:
        raise ConfigError("comparison", problems)


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends the comparison as an exception does, so that its runs are stopped, too, with a checkpoint."""
    raise SystemExit(128 + number)
