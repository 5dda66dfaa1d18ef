"""What tests of comparisons share: a short run, methods, a comparison of them, and trials in this process."""

from __future__ import annotations

import csv
import math

import pytest

from negbank import files
from negbank.train.config import parse
from negbank.train.run import resume
from negbank.train.studies.compare import run as running
from negbank.train.studies.compare.methods import method_configs
from negbank.train.studies.compare.processes import DIVERGENCE
from negbank.train.studies.compare.trials import Plan

RUN = {
    "data": {"type": "digits", "rows": 300},
    "encoder": {"width": 8, "features": 16, "projector": {"hidden": 16, "dim": 8}},
    "batches": {"batch_size": 8},
    "refresh": {"every": 2, "unit": "steps"},
    "eval": {"every": 2, "max_rows": 100, "global_rows": 50},
    "run": {"steps": 6, "log_every": 2},
}


METHODS = {
    "simclr": {"negatives": {"type": "in_batch"}},
    "moco": {"negatives": {"type": "moco", "queue": 16}},
    "logq": {"negatives": {"type": "importance", "draws": 4, "proposal": {"type": "nearest", "k": 4}}},
}


@pytest.fixture(name="comparison")
def comparison_fixture():
    return comparison


def comparison(out, **changes):
    return parse({"base": RUN, "methods": METHODS, "seeds": [0], "out": str(out), **changes}, root="compare")[0]


@pytest.fixture
def in_process(monkeypatch):
    """Trials in this process, one after the other; the list of those that were run, at most `limit[0]` of them."""
    ran, limit = [], [math.inf]

    def execute(trials, jobs):
        for trial in trials:
            if len(ran) >= limit[0]:
                raise KeyboardInterrupt
            resume(trial.folder)
            ran.append(str(trial))
            yield trial

    monkeypatch.setattr(running, "execute", execute)
    return ran, limit


@pytest.fixture(name="read")
def read_fixture():
    return read


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(name="diverge")
def diverge_fixture():
    return diverge


def diverge(out, method, budget, lr, seed):
    folder = out / method / budget / f"lr{lr:g}" / f"seed{seed}"
    folder.mkdir(parents=True)
    files.write(folder / DIVERGENCE, files.sealed({"said": "step 3: the loss of rows [1] is not finite"}))


@pytest.fixture
def study():
    """Runs a configuration."""
    return lambda config: running.run(**dict(config))


@pytest.fixture
def configs_of():
    """The runs of a configuration's methods."""
    return lambda config: method_configs(config.base, config.methods)


@pytest.fixture
def plan():
    """The plan of a configuration."""

    def made(config):
        options = {key: getattr(config, key) for key in ("seeds", "lr", "tune_seed", "reference")}
        return Plan(method_configs(config.base, config.methods), config.out, **options)

    return made
