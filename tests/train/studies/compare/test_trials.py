"""Trials, their folders, and steps of equal encodings."""

from __future__ import annotations

import pytest

from negbank.train.config import parse, to_dict
from negbank.train.studies.compare.trials import equal_steps

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


@pytest.mark.parametrize(
    ("curve", "budget", "expected"),
    [
        ([(1500, 6400)], 6400, 1500),
        ([(750, 6400), (1500, 12800)], 6400, 750),
        ([(1000, 9600)], 6400, 667),
        ([(3, 100)], 1, 1),
        ([(10, 20)], 30, 15),
        ([(100, 100), (200, 400)], 250, 150),  # the rate rises
    ],
)
def test_steps_of_equal_encodings(curve, budget, expected):
    assert equal_steps([(0, 0), *curve], budget) == expected


def test_trials_and_their_folders(tmp_path, comparison, plan):
    config = comparison(tmp_path, seeds=[3, 1], lr=[0.1, 0.01], tune_seed=7, reference="moco")
    trials = plan(config)
    tuning = trials.tuning()
    assert [(c.method, c.lr, c.seed) for c in tuning][:3] == [("simclr", 0.1, 7), ("simclr", 0.01, 7), ("moco", 0.1, 7)]
    rates = {"simclr": 0.1, "moco": 0.01, "logq": 0.1}
    steps = trials.steps(rates)
    assert [(c.method, c.seed, c.lr) for c in steps] == [(m, s, rates[m]) for s in (3, 1) for m in METHODS]
    assert str(steps[1].folder) == f"{tmp_path}/moco/steps/lr0.01/seed3"
    assert (steps[1].config.optim.lr, steps[1].config.run.seed, steps[1].config.run.steps) == (0.01, 3, 6)
    equal = trials.encodings(rates, {"simclr": [(0, 0), (6, 50)], "moco": [(0, 0), (6, 100)]})
    assert [(c.method, c.config.run.steps) for c in equal] == [("simclr", 12), ("moco", 6)] * 2
    assert equal[1].folder == steps[1].folder
    assert str(equal[0].folder) == f"{tmp_path}/simclr/encodings/lr0.1/seed3"


def test_warmup_is_the_same_share_of_every_run(tmp_path, comparison, plan):
    base = {**RUN, "optim": {"warmup": 5}}
    config = comparison(tmp_path, base=base, methods={name: METHODS[name] for name in ("simclr", "moco")})
    rates = {"simclr": 0.1, "moco": 0.1}
    made = [(0, 0), (6, 96)]
    for encodings, expected in ((96, (6, 5)), (192, (3, 2)), (5000, (1, 0)), (48, (12, 10))):
        trials = plan(config).encodings(rates, {"simclr": made, "moco": [(0, 0), (6, encodings)]})
        moco = trials[1].config
        assert (moco.run.steps, moco.optim.warmup) == expected
        parse(to_dict(moco))  # a run may have it
