"""Batch samplers by name in a run: they follow refreshes, and resume in the middle of an epoch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from negbank.train.build import build
from negbank.train.config import ConfigError, parse

BATCHES = {
    "knn": {"type": "knn", "neighbors": 12},
    "prosampler": {"type": "prosampler", "candidates": 100, "neighbors": 12},
    "prosampler, as published": {
        "type": "prosampler",
        "candidates": 100,
        "neighbors": 12,
        "cover": "walk",
        "restart": 0.8,
    },
    "spectral": {"type": "spectral", "group": 6, "restarts": 2},
    "spectral, global": {"type": "spectral", "scope": "global"},
    "ordered": {"type": "ordered", "pool": 8, "keep": 3},
    "ordered, fresh": {"type": "ordered", "pool": 8, "keep": 3, "score": "fresh"},
}


def assembled(batches, **options):
    config = {
        "data": {"type": "digits"},
        "encoder": {"width": 16, "features": 32, "projector": {"hidden": 32, "dim": 16}},
        "batches": {"batch_size": 32, **batches},
        "negatives": {"type": "in_batch"},
        "refresh": {"every": 7, "unit": "steps", "mode": "full"},
        "run": {"steps": 30},
        **options,
    }
    return build(parse(config)[0]).trainer


def steps(trainer, count):
    found = []
    for _ in range(count):
        metrics = trainer.step()
        trainer.refresh()
        found.append(metrics)
    return found


@pytest.mark.parametrize("name", BATCHES)
def test_a_run_meets_harder_batches_than_uniform_ones_and_resumes_within_an_epoch(name):
    trainer = assembled(BATCHES[name])
    trainer.refresh()
    steps(trainer, 10)
    state, snapshots = copy.deepcopy(trainer.state_dict()), trainer.snapshots()
    expected = steps(trainer, 8)
    resumed = assembled(BATCHES[name])
    resumed.load_state_dict(state, snapshots)
    assert steps(resumed, 8) == expected
    assert "mean_cosine" in expected[0]


def hardness(batches, z):
    """Mean loss of batches whose positives are perfect, at τ = 0.1."""
    logits = [(z[rows] @ z[rows].T - 1) / 0.1 for rows in batches]
    return float(torch.cat([each.logsumexp(1) for each in logits]).mean())


@pytest.mark.parametrize("name", BATCHES)
def test_batches_are_harder_than_uniform_ones(name):
    trainer = assembled(BATCHES[name])
    trainer.refresh()
    z = trainer.towers[0].refresher.snapshot.vectors
    assert hardness(trainer.batches, z) > hardness(assembled({"type": "uniform"}).batches, z) + 0.01


def test_fresh_scores_are_counted_as_encodings():
    bank, fresh = (assembled(BATCHES[name]) for name in ("ordered", "ordered, fresh"))
    for trainer in (bank, fresh):
        trainer.refresh()
        steps(trainer, 3)
    assert bank.encodings == len(bank.towers[0].data) + 3 * 64  # the first refresh, in full mode, and the steps
    assert fresh.encodings > bank.encodings + 8 * 32


def test_labels_in_a_file_bound_who_meets(tmp_path):
    count = len(assembled({"type": "uniform"}).towers[0].data)
    np.save(tmp_path / "groups.npy", np.arange(count) % (count // 2))
    trainer = assembled({"type": "knn", "neighbors": 12, "groups": str(tmp_path / "groups.npy"), "max_per_group": 1})
    trainer.refresh()
    for _, rows in zip(range(20), trainer.batches):
        assert len({row % (count // 2) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ({"type": "prosampler", "neighbors": 101, "candidates": 100}, "neighbors=101"),
        ({"type": "ordered", "keep": 9, "pool": 8}, "keep=9"),
        ({"type": "knn", "neighbors": 5000}, "neighbors=5000"),
        ({"type": "knn", "groups": "nowhere.npy", "max_per_group": 1}, "nowhere.npy"),
        ({"type": "knn", "max_per_group": 2}, "only together with groups"),
    ],
)
def test_bad_input_is_named(batches, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        assembled(batches)


def test_unknown_names_and_values_are_said_together():
    with pytest.raises(ConfigError, match=r"(?s)batches\.scope.*run\.steps"):
        parse({"batches": {"type": "spectral", "scope": "all"}, "run": {"steps": 0}})


def test_in_batch_proposals_are_refused():
    with pytest.raises(ValueError, match="uniform draws"):
        assembled({"type": "spectral"}, negatives={"type": "emc2", "proposals": "both"})
    assert torch.is_tensor(
        assembled({"type": "spectral"}, negatives={"type": "emc2", "proposals": "index"}).towers[0].bank.vectors
    )
