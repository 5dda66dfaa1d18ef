"""What tests of ablations share: a small world, a configuration in a folder of its own, and how to read results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from negbank import Snapshot
from negbank.train.config import parse
from negbank.train.studies.ablation import results
from negbank.train.studies.ablation.measurement import Key, Measurement
from negbank.train.studies.ablation.run import run
from negbank.train.studies.ablation.sources import moved
from negbank.train.studies.ablation.store import VALUES

PROPOSALS = [{"type": "uniform"}, {"type": "head_tail", "k": 4}]


@pytest.fixture
def world(clustered):
    truth = torch.nn.functional.normalize(clustered(40, dim=6, clusters=4, seed=1).double(), dim=1)
    return truth, Snapshot.build(moved(truth, 0.9, seed=3), factory="exact")


@pytest.fixture(name="made")
def made_fixture():
    return made


def made(proposal, ess, *, ms=1.0, spread=1.0, budgets=(1, 64), level="bank"):
    """A measurement of anchors with the given ESS; total variation 1 − ESS."""
    values = {name: ess[:, None].expand(-1, len(budgets)).double() for name in VALUES}
    clock = torch.full_like(values["ess"], ms)
    encodings = torch.tensor(budgets).double().expand_as(clock)
    values |= {"tv": 1 - values["ess"], "ms": clock, "ms_low": clock / spread, "ms_high": clock * spread}
    values |= {"encodings": encodings, "ess_per_encoding": values["ess"]}
    values["ess_per_ms"] = encodings * values["ess"] / ms
    return Measurement(Key(proposal, 0.1, level, "bank"), 0.1, torch.arange(len(ess)), tuple(budgets), values)


@pytest.fixture
def npy(tmp_path, clustered):
    path = tmp_path / "rows <b>&.npy"
    np.save(path, 3 * clustered(30, dim=5, clusters=3).numpy())
    return path


@pytest.fixture
def make(npy, tmp_path):
    def config(**changes):
        data = {
            "source": {"type": "npy", "path": str(npy), "cosines": [0.97, 0.8]},
            "proposals": PROPOSALS,
            "temperatures": [0.1],
            "budgets": [4, 1],
            "anchors": 6,
            "out": str(tmp_path / "out"),
        }
        return parse({**data, **changes}, root="ablate")[0]

    return config


@pytest.fixture(name="table")
def table_fixture():
    return table


@pytest.fixture
def study():
    """Runs a configuration."""
    return lambda config, **options: run(**dict(config), **options)


def table(folder):
    """The rows of ablation.csv without what the clock decides."""
    with (Path(folder) / "ablation.csv").open() as file:
        return [
            {k: v for k, v in row.items() if not k.startswith(("ms", "ess_per_ms"))} for row in csv.DictReader(file)
        ]


@pytest.fixture
def no_figures(monkeypatch):
    """No figures, for tests of all the rest."""
    for name in ("draw_tv", "draw_bias"):
        monkeypatch.setattr(results, name, lambda rows, path: path.write_bytes(b"\x89PNG"))


@pytest.fixture
def config_file(npy, tmp_path):
    path = tmp_path / "ablate.yaml"
    path.write_text(
        json.dumps(
            {
                "source": {"type": "npy", "path": str(npy), "cosines": [0.9]},
                "proposals": PROPOSALS,
                "budgets": [1, 2],
                "anchors": 4,
                "out": str(tmp_path / "out"),
            }
        )
    )
    return path
