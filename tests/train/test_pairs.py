"""Two encoders: the textbook gradients of both directions, whose rows are drawn by what, and an exact resume."""

from __future__ import annotations

import copy
import inspect
import itertools
import re

import pytest
import torch
from negbank.train.config import parse
from negbank.train.descent import NonFiniteError
from negbank.train.options import TYPES
from negbank.train.pairs import PairTrainer, build_pairs, recall_both_ways
from torch import nn

from negbank import Exclusions

N, B, D, TEMPERATURE = 40, 8, 6, 0.3
INDEX = {"refresh": {"every": 3, "unit": "steps"}, "index": {"factory": "exact"}}
METHODS = {
    "infonce": {"type": "in_batch", "learn": True},
    "sogclr": {"type": "sogclr", "relative": True},
    "isogclr": {"type": "isogclr"},
    "emc2": {"type": "emc2", "proposal": {"k": 5}},
    "importance": {"type": "importance", "draws": 8, "proposal": {"k": 5}},
    "importance, fresh queries": {"type": "importance", "draws": 8, "query": "fresh", "proposal": {"k": 5}},
    "hardest": {"type": "hardest", "k": 2},
    "negative cache": {"type": "negative_cache", "draws": 2},
}


class Linear(nn.Module):
    """Rows to unit vectors; what it was asked to encode is kept."""

    def __init__(self, width, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(D, width, generator=generator, dtype=torch.float64))
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(len(x))
        return nn.functional.normalize(x @ self.weight.T, dim=1)


def inputs(width, seed, rows=N):
    """Features of the rows, and how they are read: with a generator, under noise."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def read(rows, generator):
        noise = 0.0 if generator is None else 0.1 * torch.randn(len(rows), width, generator=generator)
        return x[rows] + noise

    return x, read


def make(negatives, *, exclude=None, batch_size=B, rows=N, noisy=True, **sections):
    config, _ = parse({
        "batches": {"batch_size": batch_size}, "negatives": negatives, "loss": {"temperature": TEMPERATURE},
        "optim": {"type": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0},
        "run": {"steps": 1000, "device": "cpu", "precision": "float32"}, **INDEX, **sections,
    })  # fmt: skip
    sides = []
    for width, seed in ((5, 1), (7, 2)):
        x, read = inputs(width, seed, rows)
        sides.append((Linear(width, seed), read if noisy else lambda rows, generator, x=x: x[rows]))
    return build_pairs(config, rows, *sides, exclude=exclude)


def embedded(trainer):
    """Both sides' embeddings of all rows, with gradient."""
    return [side.encoder(side.read(torch.arange(len(side.bank)), None)) for side in (trainer.left, trainer.right)]


def test_infonce_is_the_symmetric_cross_entropy_of_clip():
    trainer = make(METHODS["infonce"], noisy=False)
    weights = [trainer.left.encoder.weight, trainer.right.encoder.weight]
    logs = [side.negatives.learned[0] for side in (trainer.left, trainer.right)]
    for _ in range(3):
        rows = torch.tensor(next(iter(copy.deepcopy(trainer.batches))))
        left, right = embedded(trainer)
        scores = left[rows] @ right[rows].T
        ways = [nn.functional.cross_entropy(s * log.exp(), torch.arange(B)) for s, log in zip((scores, scores.T), logs)]
        rate = 0.5 * trainer.descent.schedule(trainer.descent.step_number)
        expected = [
            p.detach() - rate * g
            for p, g in zip(weights + logs, torch.autograd.grad(sum(ways) / 2, weights + logs))
        ]  # fmt: skip
        metrics = trainer.step()
        for got, wanted in zip(weights + logs, expected):
            torch.testing.assert_close(got.detach(), wanted, atol=1e-6, rtol=1e-6)
    assert metrics["left_temperature"] != metrics["right_temperature"]


def test_sogclr_is_the_two_way_loss_read_literally():
    """Yuan et al. 2022, two-way: g_i = mean_j exp(β (s_ij − s_ii)) and that of the transpose, each over its own u_i."""
    gamma = 0.7
    trainer = make({**METHODS["sogclr"], "gamma": gamma}, noisy=False)
    weights = [trainer.left.encoder.weight, trainer.right.encoder.weight]
    u: dict[tuple[int, int], float] = {}
    epochs = itertools.chain.from_iterable(itertools.repeat(copy.deepcopy(trainer.batches)))
    for rows in itertools.islice(epochs, 12):  # more than two epochs: rows come back
        left, right = embedded(trainer)
        total = 0.0
        for way, (a, b) in enumerate(((left, right), (right, left))):
            for i in rows:
                g = sum(torch.exp((a[i] @ b[j] - a[i] @ b[i]) / TEMPERATURE) for j in rows if j != i) / (B - 1)
                old = u.get((way, i))
                u[way, i] = g.item() if old is None else (1 - gamma) * old + gamma * g.item()
                total = total + g / u[way, i] / (2 * B)
        rate = 0.5 * trainer.descent.schedule(trainer.descent.step_number)
        expected = [p.detach() - rate * g for p, g in zip(weights, torch.autograd.grad(total, weights))]
        trainer.step()
        for got, wanted in zip(weights, expected):
            torch.testing.assert_close(got.detach(), wanted, atol=1e-5, rtol=1e-5)


def test_chains_that_persist_visit_the_softmax_over_the_other_side(steps):
    """With encoders that stand still, kept states of many visits have the law π of each direction."""
    rows = 24
    trainer = make(
        {"type": "emc2", "proposals": "index", "draws": 16, "burn_in": 0.0, "proposal": {"k": 6}},
        batch_size=rows, rows=rows, noisy=False, refresh={"every": 10_000, "unit": "steps", "mode": "full"},
        optim={"type": "sgd", "lr": 1e-30, "momentum": 0.0, "weight_decay": 0.0},
    )  # fmt: skip
    left, right = (z.detach() for z in embedded(trainer))
    sums = {}
    for name, side in (("left", trainer.left), ("right", trainer.right)):
        sums[name] = torch.zeros(rows, rows, dtype=torch.float64)

        def kept(batch, ticket, call=side.negatives.__call__, total=sums[name]):
            negatives, info = call(batch, ticket)
            total[batch.rows[:, None], batch.candidate_rows] += negatives.weights
            return negatives, info

        side.negatives = _Spied(side.negatives, kept)
    steps(trainer, 600)
    for name, scores in (("left", left @ right.T), ("right", right @ left.T)):
        pi = (scores / TEMPERATURE).fill_diagonal_(-torch.inf).softmax(1)
        assert float((sums[name] / 600 - pi).abs().sum(1).max() / 2) < 0.06


class _Spied:
    """A sampler whose calls go through a function."""

    def __init__(self, sampler, call):
        self._sampler, self._call = sampler, call

    def __call__(self, batch, ticket):
        return self._call(batch, ticket)

    def __getattr__(self, name):
        return getattr(self._sampler, name)


@pytest.mark.parametrize("query", ["bank", "fresh"])
def test_anchors_are_searched_for_with_their_own_sides_rows(query, monkeypatch, steps):
    trainer = make({**METHODS["importance"], "query": query}, noisy=False)
    steps(trainer, 5)
    asked = {}
    for side, other in ((trainer.left, trainer.right), (trainer.right, trainer.left)):
        own = side.bank.vectors.clone()
        fresh = side.encode(torch.arange(N)).float()
        index = side.negatives._index
        assert index.snapshot is other.refresher.snapshot
        original = type(index).__call__

        def seen(self, rows, queries, generator, original=original):
            asked[id(self)] = (rows, queries)
            return original(self, rows, queries, generator)

        monkeypatch.setattr(type(index), "__call__", seen)
        asked[id(side)] = own if query == "bank" else fresh
    trainer.step()
    for side in (trainer.left, trainer.right):
        rows, queries = asked[id(side.negatives._index)]
        torch.testing.assert_close(queries, asked[id(side)][rows])


def test_a_step_encodes_each_side_once_and_writes_both_banks(steps):
    trainer = make(METHODS["importance"])
    steps(trainer, 4)
    before = [side.bank.written_at.clone() for side in (trainer.left, trainer.right)]
    counts = [len(trainer.left.encoder.seen), len(trainer.right.encoder.seen)]
    encodings = trainer.encodings
    metrics = trainer.step()
    sides = (trainer.left, trainer.right)
    assert [len(side.encoder.seen) - count for side, count in zip(sides, counts)] == [1, 1]
    passes = [side.encoder.seen[-1] for side in sides]
    assert trainer.encodings - encodings == sum(passes)
    assert passes == [B + metrics["right_extra_encodings"], B + metrics["left_extra_encodings"]]
    for side, old, count in zip(sides, before, passes):
        assert int((side.bank.written_at == 5).sum()) == count
        assert torch.equal(side.bank.written_at[side.bank.written_at != 5], old[side.bank.written_at != 5])
    assert {"loss", "lr", "positive", "left_hardness", "right_mean_cosine"} <= set(metrics)


def test_encodings_are_all_that_an_encoder_was_given(steps):
    refresh = {"every": 3, "unit": "steps", "mode": "full", "probe_rows": 8}
    batches = {"type": "ordered", "batch_size": B, "pool": 4, "keep": 2, "score": "fresh"}
    for negatives, more in ((METHODS["importance"], {}), (METHODS["infonce"], {"batches": batches})):
        trainer = make(negatives, refresh=refresh, **more)
        given = []
        for side in (trainer.left, trainer.right):
            side.encoder.register_forward_hook(lambda *call, given=given: given.append(len(call[2])))
        steps(trainer, 7)
        assert trainer.encodings == sum(given)
        assert trainer.encodings > 7 * 2 * B + 3 * 2 * N - 1


@pytest.mark.parametrize("name", [*METHODS, "drawn batches"])
def test_k_steps_and_k_more_after_a_resume_are_2k_steps(name, steps):
    negatives, sections = METHODS.get(name, {"type": "importance", "draws": 0}), {}
    if name not in METHODS:
        sections["batches"] = {"type": "drawn", "batch_size": B, "proposal": {"type": "nearest", "k": 5}}
    whole = make(negatives, **sections)
    expected = steps(whole, 14)
    first = make(negatives, **sections)
    steps(first, 7)
    state = copy.deepcopy(first.state_dict())
    snapshots = tuple(None if s.refresher is None else s.refresher.snapshot for s in (first.left, first.right))
    second = make(negatives, **sections)
    second.load_state_dict(state, snapshots)
    assert steps(second, 7) == expected[7:]
    for mine, theirs in ((second.left, whole.left), (second.right, whole.right)):
        assert torch.equal(mine.encoder.weight, theirs.encoder.weight)
        assert torch.equal(mine.bank.vectors, theirs.bank.vectors)
    assert second.encodings == whole.encodings
    losses = [metrics["loss"] for metrics in expected]
    assert all(loss == loss for loss in losses)


@pytest.mark.parametrize("name", ["infonce", "sogclr", "emc2", "importance", "hardest", "negative cache"])
def test_captions_of_one_image_are_no_negatives(name, steps):
    groups = torch.arange(N) // 4
    trainer = make(METHODS[name], exclude=Exclusions(N, groups=groups))
    met = 0
    for side in (trainer.left, trainer.right):

        def checked(batch, ticket, call=side.negatives.__call__):
            nonlocal met
            negatives, info = call(batch, ticket)
            same = groups[batch.rows][:, None] == groups[batch.candidate_rows]
            met += int(same.sum()) - len(batch.rows)
            assert float((negatives.weights * same).abs().max()) == 0
            return negatives, info

        side.negatives = _Spied(side.negatives, checked)
    steps(trainer, 8)
    assert met > 0


def test_both_sides_draw_from_streams_of_their_own():
    trainer = make(METHODS["importance"])
    left, right = (side.negatives._counter for side in (trainer.left, trainer.right))
    assert left != right


def test_one_encoder_may_be_both_sides(steps):
    _, read = inputs(5, 1)
    encoder = Linear(5, 1)
    config, _ = parse({"batches": {"batch_size": B}, "negatives": METHODS["emc2"], "run": {"steps": 9}, **INDEX})
    trainer = build_pairs(config, N, (encoder, read), (encoder, read))
    before = encoder.weight.detach().clone()
    steps(trainer, 4)
    assert not torch.equal(before, encoder.weight)
    assert sum(len(group["params"]) for group in trainer.descent.optimiser.param_groups) == 1


def test_what_is_not_finite_stops_before_anything_changes(steps):
    trainer = make(METHODS["emc2"])
    steps(trainer, 3)
    right = trainer.right.encoder
    forward = right.forward
    right.forward = lambda x: forward(x).index_fill(0, torch.tensor([2]), torch.nan)
    before = trainer.left.encoder.weight.detach().clone(), trainer.left.bank.vectors.clone()
    with pytest.raises(NonFiniteError, match="step 3: the embedding of rows"):
        trainer.step()
    assert torch.equal(before[0], trainer.left.encoder.weight)
    assert torch.equal(before[1], trainer.left.bank.vectors)


def test_what_does_not_fit_is_refused():
    for negatives, message in [
        ({"type": "moco"}, "momentum=0.99 needs a slow copy"),
        ({"type": "emc2", "proposal": {"adapt": True}}, "negatives.proposal.adapt=True"),
    ]:
        with pytest.raises(ValueError, match=re.escape(message)):
            make(negatives)
    with pytest.raises(ValueError, match=r"batches\.batch_size=41: there are 40 pairs"):
        make(METHODS["infonce"], batch_size=41)
    with pytest.raises(ValueError, match="in-batch proposals need uniform batches"):
        make(METHODS["sogclr"], batches={"type": "knn", "batch_size": B, "neighbors": 4})
    config, _ = parse({"batches": {"batch_size": B}, "negatives": METHODS["importance, fresh queries"],
                       "run": {"steps": 9}})  # fmt: skip
    _, read = inputs(5, 1)
    normed = nn.Sequential(Linear(5, 1), nn.BatchNorm1d(D).double())
    with pytest.raises(ValueError, match="encodes drawn rows in a second pass"):
        build_pairs(config, N, (Linear(5, 1), read), (normed, read))
    wide = Linear(5, 1)
    wide.weight = nn.Parameter(torch.randn(D + 1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=re.escape("banks of shapes (40, 6) and (40, 7)")):
        build_pairs(parse({"batches": {"batch_size": B}, "negatives": METHODS["infonce"], "run": {"steps": 9}})[0], N,
                    (Linear(5, 1), read), (wide, read))  # fmt: skip


def test_recall_counts_partners_among_the_best():
    left = torch.eye(6)
    right = torch.eye(6)[torch.tensor([1, 0, 2, 3, 4, 5])]
    found = recall_both_ways(left, right, ks=(1, 6))
    assert found == {
        "left_to_right_at_1": pytest.approx(4 / 6), "left_to_right_at_6": 1.0,
        "right_to_left_at_1": pytest.approx(4 / 6), "right_to_left_at_6": 1.0,
    }  # fmt: skip
    assert recall_both_ways(left, right, ks=(1,), groups=torch.arange(6) // 2)["left_to_right_at_1"] == 1.0
    with pytest.raises(ValueError, match=r"expected values in 1\.\.6"):
        recall_both_ways(left, right)
    with pytest.raises(ValueError, match="one row a pair"):
        recall_both_ways(left, right[:5], ks=(1,))


def test_the_trainer_names_no_method():
    source = inspect.getsource(PairTrainer)
    assert not [name for name in TYPES["negatives"] if name in source]
