"""Every method of negatives trains through `negbank.train.build`, by its name in YAML, on one path, and resumes."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import nn

from negbank.train import registry
from negbank.train.build import build
from negbank.train.config import ConfigError, parse
from negbank.train.trainer import Trainer

GROUP = {"norm": "group", "projector": {"norm": "none", "dim": 16}, "width": 16, "features": 16}
BATCH = {"projector": {"dim": 16}, "width": 8, "features": 16}
METHODS = {
    "simclr": {"type": "in_batch"},
    "simclr, learned temperature": {"type": "in_batch", "learn": True},
    "logQ": {"type": "importance", "draws": 8},
    "emc2": {"type": "emc2"},
    "emc2, pool": {"type": "emc2", "pool": True},
    "sogclr": {"type": "sogclr", "decay": 4},
    "sogclr, as published": {"type": "sogclr", "per_view": False},
    "isogclr": {"type": "isogclr", "rate": 0.05},
    "dcl": {"type": "dcl"},
    "hcl": {"type": "hcl", "concentration": 0.5},
    "moco v2": {"type": "moco", "queue": 100},
    "moco v3": {"type": "moco", "queue": 0},
    "hardest": {"type": "hardest"},
    "hardest, as published": {"type": "hardest", "k": 20, "draws": 1, "weights": "pairwise"},
    "mined": {"type": "mined"},
    "mined, random ones": {"type": "mined", "draws": 2, "pick": "random", "perc_pos": 0.95, "mask": True},
    "negative cache": {"type": "negative_cache", "refresh": 0.01},
    "negative cache, fresh queries": {"type": "negative_cache", "query": "fresh"},
    "negative cache, by the index": {"type": "negative_cache", "search": "index", "k": 30},
}


def assembly(negatives, **sections):
    config = {
        "data": {"type": "digits"}, "batches": {"batch_size": 12}, "negatives": negatives, "run": {"steps": 12},
        "encoder": GROUP if negatives.get("query") == "fresh" else BATCH,
        "refresh": {"every": 2, "unit": "steps", "mode": "full"},
    }  # fmt: skip
    return build(parse({**config, **sections})[0])


def test_there_is_a_run_of_every_type():
    assert {options["type"] for options in METHODS.values()} == set(registry.REGISTRY["negatives"])


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_and_goes_on_where_it_stopped(name, steps):
    first = assembly(METHODS[name]).trainer
    encoder = first.towers[0].encoder
    before = [p.detach().clone() for p in encoder.parameters()]
    steps(first, 3)
    assert not all(torch.equal(a, b) for a, b in zip(before, encoder.parameters()))
    state, snapshots = copy.deepcopy(first.state_dict()), first.snapshots()
    expected = steps(first, 3)
    assert all(torch.isfinite(torch.tensor([m["loss"], m["hardness"]])).all() for m in expected)
    second = assembly(METHODS[name]).trainer
    second.load_state_dict(state, snapshots)
    assert steps(second, 3) == expected
    assert second.encodings == first.encodings


def test_snapshots_are_built_for_those_that_read_them():
    reads = {name for name, options in METHODS.items() if assembly(options).trainer.towers[0].refresher is not None}
    assert reads == {"emc2", "emc2, pool", "logQ", "hardest", "hardest, as published", "mined",
                     "mined, random ones", "negative cache, by the index"}  # fmt: skip


@pytest.mark.parametrize("name", ["sogclr", "isogclr", "emc2"])
def test_what_counts_on_uniform_batches_is_refused_with_others(name):
    with pytest.raises(ValueError, match="takes the batch's rows for uniform draws, which those of knn are not"):
        assembly(METHODS[name], batches={"type": "knn", "batch_size": 12})
    assembly(METHODS["hcl"], batches={"type": "knn", "batch_size": 12})


def test_drawn_batches_train_and_go_on_where_they_stopped(steps):
    """With the batch alone, and with index draws; sampled softmax knows what was expected of knn batches as little."""
    batches = {"type": "drawn", "batch_size": 12, "group": 3, "proposal": {"type": "nearest", "k": 20}}
    for negatives in ({"type": "importance", "draws": 0}, METHODS["logQ"]):
        first = assembly(negatives, batches=batches).trainer
        steps(first, 5)
        state, snapshots = copy.deepcopy(first.state_dict()), first.snapshots()
        expected = steps(first, 3)
        second = assembly(negatives, batches=batches).trainer
        second.load_state_dict(state, snapshots)
        assert steps(second, 3) == expected
    assert "extra_encodings" in expected[0]
    with pytest.raises(ValueError, match="which is not known of knn batches"):
        assembly(METHODS["logQ"], batches={"type": "knn", "batch_size": 12})
    with pytest.raises(ConfigError, match="staleness is measured for negatives alone"):
        assembly(METHODS["logQ"], batches={**batches, "proposal": {"type": "nearest", "adapt": True}})


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_it_trains_on_the_gpu(name, steps):
    steps(assembly(METHODS[name], run={"steps": 12, "device": "cuda"}).trainer, 3)


def test_a_learned_temperature_is_trained_without_weight_decay_and_reported(steps):
    trainer = assembly(METHODS["simclr, learned temperature"], optim={"weight_decay": 0.5}).trainer
    (learned,) = trainer.towers[0].negatives.learned
    *_, group = trainer.descent.optimiser.param_groups
    assert group["params"] == [learned]
    assert group["weight_decay"] == 0
    found = [metrics["temperature"] for metrics in steps(trainer, 3)]
    assert found[0] == pytest.approx(0.1)
    assert len(set(found)) == 3


def test_the_trainer_names_no_method():
    source = inspect.getsource(Trainer)
    assert not [name for name in registry.REGISTRY["negatives"] if name in source]


class Recorder(nn.Module):
    """Pixels to unit vectors; what it was asked to encode is kept."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(256, 8)
        self.norm = nn.BatchNorm1d(8)
        self.seen = []

    @property
    def backbone(self):
        return nn.Flatten(1)

    def forward(self, images):
        if self.training:
            self.seen.append(images.detach().clone())
        return nn.functional.normalize(self.norm(self.layer(images.flatten(1))), dim=1)


def test_the_momentum_encoder_sees_the_same_views_and_follows_slowly():
    config = {
        "data": {"type": "digits"}, "batches": {"batch_size": 12}, "run": {"steps": 9, "precision": "float32"},
        "negatives": {"type": "moco", "queue": 50, "momentum": 0.75}, "optim": {"type": "sgd", "lr": 0.5},
    }  # fmt: skip
    torch.manual_seed(0)
    trainer = build(parse(config)[0], encoder=Recorder()).trainer
    fast, slow = trainer.towers[0].encoder, trainer.slow[0]
    assert slow is not fast
    expected = [p.detach().clone() for p in fast.parameters()]
    for step in range(3):
        assert all(torch.equal(a, b) for a, b in zip(slow.parameters(), expected))
        trainer.step()
        expected = [0.75 * a + 0.25 * b.detach() for a, b in zip(expected, fast.parameters())]
        for mine, theirs in zip(slow.parameters(), expected):
            torch.testing.assert_close(mine, theirs)
        expected = [p.clone() for p in slow.parameters()]
        assert torch.equal(fast.seen[-1], slow.seen[-1])
        assert trainer.encodings == (step + 1) * 4 * 12
    assert all(p.grad is None and not p.requires_grad for p in slow.parameters())
    assert not torch.equal(fast.norm.running_mean, slow.norm.running_mean)  # buffers are each encoder's own
    queued = trainer.towers[0].negatives.keys[:24]
    with torch.no_grad():
        torch.testing.assert_close(queued.norm(dim=1), torch.ones(24))


def test_without_momentum_there_is_no_second_encoder():
    trainer = assembly(METHODS["simclr"]).trainer
    assert trainer.slow == [None]
    assert trainer.state_dict()["towers"][0]["slow"] is None
