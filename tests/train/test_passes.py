"""Gradient caching: the gradient of the whole step at the memory of a piece, for every method."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from negbank import EmbeddingBank, Refresher
from negbank.counter import Counter, seeded_uniforms
from negbank.proposals import HeadTail
from negbank.samplers.batches import Drawn, UniformBatches
from negbank.samplers.negatives import (
    Dcl,
    Emc2,
    Hardest,
    Hcl,
    Importance,
    InBatch,
    ISogClr,
    Mined,
    Moco,
    NegativeCache,
    SogClr,
)
from negbank.train import registry
from negbank.train.passes import Passes, seeded
from negbank.train.towers import Tower
from negbank.train.trainer import Trainer

N, B, D, T = 48, 12, 6, 0.3
bind = lambda snapshot: HeadTail(snapshot, k=6, temperature=T, floor=0.2)  # noqa: E731
METHODS = {
    "in_batch": lambda v: InBatch(temperature=T, learn=True),
    "sogclr": lambda v: SogClr(N, temperature=T, views=v),
    "isogclr": lambda v: ISogClr(N, temperature=T, views=v),
    "dcl": lambda v: Dcl(temperature=T),
    "hcl": lambda v: Hcl(temperature=T),
    "moco": lambda v: Moco(N, temperature=T, queue=24),
    "hardest": lambda v: Hardest(N, temperature=T),
    "mined": lambda v: Mined(N, temperature=T, draws=2, range_max=6, pick="random", perc_pos=0.98, mask=True),
    "negative_cache": lambda v: NegativeCache(N, temperature=T, draws=2),
    "emc2": lambda v: Emc2(N, temperature=T, views=v, proposal=bind),
    "importance": lambda v: Importance(N, temperature=T, proposal=bind, draws=9),
    "importance, drawn batches": lambda v: Importance(N, temperature=T, proposal=bind, draws=0),
    "importance, own draws for drawn batches": lambda v: Importance(
        N, temperature=T, proposal=bind, draws=2, pool=False
    ),
    "importance, fresh queries": lambda v: Importance(N, temperature=T, proposal=bind, draws=9, query="fresh"),
}


class Rows:
    labels = None

    def __init__(self, seed):
        self.rows = torch.randn(N, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def __len__(self):
        return N

    def read(self, rows, seeds):
        return self.rows[rows] + (0 if seeds is None else 0.1 * seeded_uniforms(seeds, 5).double())


class Encoder(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, D)).double()

    def forward(self, x):
        return nn.functional.normalize(self.layers(x), dim=1)


def trained(method, *, towers=1, dropout=0.0, micro_batch=None, steps=5):
    torch.manual_seed(0)
    parts, views = [], 2 if towers == 1 else 1
    for position in range(towers):
        bank = EmbeddingBank(N, D)
        refresher = Refresher(bank, every=2, unit="steps", factory="exact")
        name = ("left", "right")[position] if towers == 2 else ""
        parts.append(Tower(Encoder(dropout), Rows(position), bank, METHODS[method](views), refresher, name))
    drawn = "drawn batches" in method
    batches = Drawn(N, B, group=3, proposal=bind) if drawn else UniformBatches(N, B)
    learned = [tensor for part in parts for tensor in part.negatives.learned]
    parameters = [p for part in parts for p in part.encoder.parameters()] + learned
    trainer = Trainer(
        parts, batches=batches, optimiser=torch.optim.SGD(parameters, lr=0.2), schedule=lambda step: 1.0,
        temperature=T, counter=Counter.of(3), device=torch.device("cpu"), micro_batch=micro_batch,
        autocast=functools.partial(torch.autocast, "cpu", enabled=False),
    )  # fmt: skip
    for _ in range(steps):  # drawn batches are uniform until the first refresh
        trainer.refresh()
        trainer.step()
    return torch.cat([p.detach().flatten() for p in parameters])


def test_every_method_is_among_them():
    assert {name.split(",")[0] for name in METHODS} == set(registry.REGISTRY["negatives"])


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_pieces_give_the_gradient_of_the_whole_step(method, towers):
    whole = trained(method, towers=towers)
    torch.testing.assert_close(trained(method, towers=towers, micro_batch=5), whole, atol=1e-6, rtol=1e-6)
    assert (whole - trained(method, towers=towers, steps=4)).norm() > 1e-3  # it has moved, at every step


@pytest.mark.parametrize("method", METHODS)
def test_negatives_see_as_many_anchors_at_once_as_a_piece_has_inputs(method, monkeypatch):
    """Or the loss, which has scores of all pairs, would take the memory that the encoder no longer does."""
    made, seen = METHODS[method], []

    def watched(views):
        negatives = made(views)
        call = type(negatives).__call__

        class Watched(type(negatives)):
            def __call__(self, batch, ticket):
                seen.append((len(batch.anchors), len(batch.candidates) - len(batch.drawn)))
                return call(self, batch, ticket)

        negatives.__class__ = Watched
        return negatives

    monkeypatch.setitem(METHODS, method, watched)
    trained(method, micro_batch=6, steps=1)
    assert seen == [(6, 2 * B)] * (2 * B // 6)


@pytest.mark.parametrize("method", METHODS)
def test_dropout_is_that_of_the_first_run_of_a_piece(method, monkeypatch):
    """Against the same pieces under one graph, which needs no second run."""
    cached = trained(method, dropout=0.3, micro_batch=5)

    def at_once(self, encoder, pieces, *, name):
        return torch.cat([self._run(encoder, x, self._place.at(name, i)) for i, x in enumerate(pieces)])

    monkeypatch.setattr(Passes, "__call__", at_once)
    torch.testing.assert_close(trained(method, dropout=0.3, micro_batch=5), cached, atol=1e-6, rtol=1e-6)
    assert (cached - trained(method, dropout=0.0, micro_batch=5)).norm() > 1e-3  # dropout was on


def test_accumulating_pieces_would_be_another_loss(monkeypatch):
    """Each piece contrasted with itself alone: what gradient caching is not."""
    whole = trained("in_batch", steps=1)
    small = trained("in_batch", steps=1, micro_batch=5)
    torch.testing.assert_close(small, whole, atol=1e-9, rtol=1e-9)
    monkeypatch.setattr("test_passes.B" if __name__ == "test_passes" else f"{__name__}.B", 4)
    assert (trained("in_batch", steps=1) - whole).norm() > 1e-3


def test_layers_draw_from_the_step_and_leave_the_global_state_alone():
    before = torch.get_rng_state()
    with seeded(Counter.of(0).at("layers", 3), torch.device("cpu")):
        first = torch.rand(3)
    with seeded(Counter.of(0).at("layers", 3), torch.device("cpu")):
        assert torch.equal(torch.rand(3), first)
    with seeded(Counter.of(0).at("layers", 4), torch.device("cpu")):
        assert not torch.equal(torch.rand(3), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_batch_statistics_are_refused():
    tower = Tower(nn.BatchNorm1d(5), Rows(0), EmbeddingBank(N, 5), InBatch(temperature=T))
    with pytest.raises(ValueError, match=r"micro_batch=4: the encoder has batch norm.*norm=group"):
        Trainer(
            [tower], batches=UniformBatches(N, B), optimiser=torch.optim.SGD(tower.encoder.parameters(), lr=0.2),
            schedule=lambda step: 1.0, temperature=T, counter=Counter.of(3), device=torch.device("cpu"), micro_batch=4,
            autocast=functools.partial(torch.autocast, "cpu", enabled=False),
        )  # fmt: skip
