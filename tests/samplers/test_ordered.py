from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from negbank import Snapshot
from negbank.samplers.batches import Ordered
from negbank.samplers.batches.ordered import batch_losses


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(*shape, generator=seeded(seed)), dim=-1)


def textbook(u, v, rows, temperature):
    """Cross-entropy of each row with its own positive as the class, both ways."""
    logits, own = u[rows] @ v[rows].T / temperature, torch.arange(len(rows))
    return float(cross_entropy(logits, own) + cross_entropy(logits.T, own))


class Watched(Ordered):
    """Keeps what each plan was given and gave."""

    def plan(self, rows, count, snapshot, generator):
        state = generator.get_state()
        planned = super().plan(rows, count, snapshot, generator)
        self.seen = rows, count, state, planned
        return planned


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_loss_is_the_textbooks(temperature):
    u, v = unit(2, 40, 8)
    batches = torch.randperm(40, generator=seeded()).view(5, 8)
    losses = batch_losses(u, v, batches, temperature)
    assert losses.tolist() == pytest.approx([textbook(u, v, rows, temperature) for rows in batches], rel=1e-4)
    assert not torch.allclose(losses, batch_losses(u, u, batches, temperature))


def test_it_does_not_depend_on_how_many_batches_are_scored_at_once(monkeypatch):
    u, v = unit(2, 64, 8)
    batches = torch.arange(64).view(16, 4)
    once = batch_losses(u, v, batches, 0.5)
    monkeypatch.setattr("negbank.samplers.batches.ordered.SCORES", 40)
    torch.testing.assert_close(batch_losses(u, v, batches, 0.5), once)


@pytest.mark.parametrize("positives", [True, False])
@pytest.mark.parametrize(("rows", "pool", "keep"), [(240, 10, 3), (240, 60, 60), (267, 10, 3), (240, 100, 50)])
def test_the_hardest_of_every_pool_are_kept_and_no_others(rows, pool, keep, positives):
    u, v = unit(2, rows, 8)
    v = v if positives else u
    sampler = Watched(rows, 4, temperature=0.5, pool=pool, keep=keep)
    sampler.update(Snapshot.build(u, positives=v if positives else None, factory="exact"))
    batches = list(sampler)
    given, count, state, planned = sampler.seen
    generator = seeded()
    generator.set_state(state)
    dealt = given[torch.randperm(rows, generator=generator)][: rows // 4 * 4].view(-1, 4)
    expected = []
    for part in dealt.split(pool):
        share = keep if len(part) == pool else len(part) * keep // pool
        expected += sorted(part, key=lambda batch: textbook(u, v, batch, 0.5))[-share:]
    assert {tuple(batch.tolist()) for batch in expected} == {tuple(batch) for batch in batches}
    assert len(batches) == len(planned) == count == len(sampler)
    assert len({row for batch in batches for row in batch}) == 4 * len(batches)


@pytest.mark.parametrize(
    ("rows", "pool", "keep", "batches"),
    [
        (48_000, 1500, 150, 150),
        (96_000, 1500, 150, 300),
        (50_000, 1500, 150, 156),
        (320, 1500, 150, 1),
        (320, 4, 4, 10),
    ],
)
def test_an_epoch_has_q_of_every_k_batches(rows, pool, keep, batches):
    assert len(Ordered(rows, 32, temperature=0.1, pool=pool, keep=keep)) == batches


def test_batches_are_harder_than_uniform_ones(clustered):
    z = clustered(4000, clusters=40)
    sampler = Ordered(4000, 8, temperature=0.1, pool=100, keep=10)
    sampler.update(Snapshot.build(z, factory="exact"))
    kept = batch_losses(z, z, torch.tensor(list(sampler)), 0.1).mean()
    uniform = batch_losses(z, z, torch.randperm(4000, generator=seeded()).view(-1, 8), 0.1).mean()
    assert kept > 1.3 * uniform


@pytest.mark.parametrize("both", [True, False])
def test_fresh_embeddings_take_the_place_of_the_banks(both, monkeypatch):
    monkeypatch.setattr("negbank.samplers.batches.ordered.ENCODED", 7)
    stale, (u, v) = unit(80, 8, seed=1), unit(2, 80, 8)
    calls = []

    def encode(rows):
        assert not torch.is_grad_enabled()
        calls.append(rows)
        first, second = 3 * u[rows], (0.5 * v[rows]).half()
        return (first, second) if both else first

    options = {"temperature": 0.5, "pool": 5, "keep": 1}
    fresh = Ordered(80, 4, score="fresh", encode=encode, **options)
    fresh.update(Snapshot.build(stale, factory="exact"))
    banked = Ordered(80, 4, **options)
    banked.update(Snapshot.build(u, positives=v.half() if both else None, factory="exact"))
    assert list(fresh) == list(banked)
    assert torch.cat(calls).tolist() == list(range(80))
    assert max(map(len, calls)) == 7


def test_a_newer_snapshot_gives_all_rows_not_handed_out_another_chance():
    snapshots = [Snapshot.build(unit(400, 8, seed=s), factory="exact", version=s) for s in range(3)]
    sampler = Watched(400, 4, temperature=0.1, pool=20, keep=5)
    sampler.update(snapshots[0])
    stream = iter(sampler)
    batches = [next(stream) for _ in range(7)]
    sampler.update(snapshots[1])
    batches += [next(stream) for _ in range(6)]
    sampler.update(snapshots[2])
    state = sampler.state_dict()
    rest = list(stream)
    batches += rest
    assert len(batches) == len(sampler) == 25
    assert len({row for batch in batches for row in batch}) == 100
    u = snapshots[2].vectors
    _, count, _, planned = sampler.seen
    assert len(planned) == count == 12
    assert {tuple(batch) for batch in rest} == {tuple(batch.tolist()) for batch in planned}
    assert batch_losses(u, u, planned, 0.1).mean() > batch_losses(u, u, torch.tensor(batches[:13]), 0.1).mean()
    other = Ordered(400, 4, temperature=0.1, pool=20, keep=5)
    other.update(snapshots[2])
    other.load_state_dict(state)
    assert list(other) == rest


def test_before_the_first_snapshot_batches_are_uniform():
    sampler = Ordered(400, 4, temperature=0.1, pool=20, keep=5)
    batches = list(sampler)
    assert len(batches) == 25
    assert len({row for batch in batches for row in batch}) == 100


def test_rows_never_written_come_in_uniform_batches():
    written = torch.arange(400) < 200
    sampler = Ordered(400, 4, temperature=0.1, pool=20, keep=5)
    sampler.update(Snapshot.build(unit(400, 8), factory="exact", written=written))
    rows = torch.tensor(list(sampler)).flatten()
    assert len(rows) == rows.unique().numel() == 100
    assert 30 < int((rows >= 200).sum()) < 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1: expected a value above 0"),
        ({"keep": 41, "pool": 40}, "keep=41: expected 1..40"),
        ({"keep": 0, "pool": 40}, "keep=0: expected at least 1"),
        ({"pool": 0}, "pool=0"),
        ({"score": "fresh"}, "score='fresh': needs `encode`"),
        ({"batch_size": 51}, "batch_size=51: expected 2..50"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Ordered(50, **{"batch_size": 8, "temperature": 0.1, **options})


@pytest.mark.gpu
def test_rows_may_be_on_a_gpu():
    u = unit(400, 8)
    sampler = Ordered(400, 4, temperature=0.1, pool=20, keep=5)
    sampler.update(Snapshot.build(u.cuda(), factory="exact"))
    assert len(torch.tensor(list(sampler)).flatten().unique()) == 100
