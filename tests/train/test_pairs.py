"""Two encoders: the textbook gradients of both directions, whose rows are drawn by what, and an exact resume."""

from __future__ import annotations

import copy
import inspect
import itertools
import re

import pytest
import torch
from torch import nn

from negbank.counter import seeded_uniforms
from negbank.mining import mine_hard_negatives
from negbank.proposals import Nearest
from negbank.train import registry
from negbank.train.build import build
from negbank.train.config import ConfigError, parse
from negbank.train.data.contract import Pairs, Splits
from negbank.train.descent import NonFiniteError
from negbank.train.evaluate.retrieval import recall_both_ways
from negbank.train.trainer import Trainer

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
    "mined": {"type": "mined", "draws": 2, "range_max": 6, "pick": "random", "margin_pos": 0.05, "mask": True},
    "mined, for the left alone": {"type": "mined", "both_ways": False},
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


class Features:
    """Random features of the rows, under a seed with noise."""

    labels = None

    def __init__(self, width, seed, rows=N, noise=0.1):
        self.x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.noise = noise

    def __len__(self):
        return len(self.x)

    def read(self, rows, seeds):
        noise = 0.0 if seeds is None else seeded_uniforms(seeds, self.x.shape[1]).double() - 0.5
        return self.x[rows] + self.noise * noise


def made(config, sides, groups=None):
    """The trainer of encoders and data of two sides."""
    encoders, data = zip(*sides)
    sections = {"data": {"type": "own"}, "encoder": {"type": "own"}, "eval": {"type": "retrieval", "ks": [1]}}
    parsed, _ = parse({**sections, **config})
    return build(parsed, encoder=list(encoders), splits=Splits(Pairs(*data, groups), None, ())).trainer


def make(negatives, *, groups=None, batch_size=B, rows=N, noisy=True, **sections):
    config = {
        "batches": {"batch_size": batch_size}, "negatives": negatives, "loss": {"temperature": TEMPERATURE},
        "optim": {"type": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0},
        "run": {"steps": 1000, "device": "cpu", "precision": "float32"}, **INDEX, **sections,
    }  # fmt: skip
    noise = 0.1 if noisy else 0.0
    return made(config, [(Linear(w, s), Features(w, s, rows, noise)) for w, s in ((5, 1), (7, 2))], groups)


@torch.no_grad()
def fresh(tower):
    """A tower's embeddings of all rows, in evaluation mode."""
    return tower.encoder.eval()(tower.data.read(torch.arange(len(tower.data)), None)).float()


def embedded(trainer):
    """Both sides' embeddings of all rows, with gradient."""
    return [t.encoder(t.data.read(torch.arange(len(t.bank)), None)) for t in trainer.towers]


def upcoming(trainer):
    """The rows (B,) of the next batch."""
    batches = copy.deepcopy(trainer.batches)
    batches.load_state_dict(trainer.batches.state_dict())
    return torch.tensor(next(iter(batches)))


def test_infonce_is_the_symmetric_cross_entropy_of_clip():
    trainer = make(METHODS["infonce"], noisy=False)
    weights = [tower.encoder.weight for tower in trainer.towers]
    logs = [side.negatives.learned[0] for side in trainer.towers]
    for _ in range(3):
        rows = upcoming(trainer)
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
    weights = [tower.encoder.weight for tower in trainer.towers]
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
    for side in trainer.towers:
        sums[side.name] = torch.zeros(rows, rows, dtype=torch.float64)

        def kept(batch, ticket, call=side.negatives.__call__, total=sums[side.name]):
            negatives, info = call(batch, ticket)
            total[batch.rows[:, None], batch.candidate_rows] += negatives.weights
            return negatives, info

        spy(trainer, side, kept)
    steps(trainer, 600)
    for name, scores in (("left", left @ right.T), ("right", right @ left.T)):
        pi = (scores / TEMPERATURE).fill_diagonal_(-torch.inf).softmax(1)
        assert float((sums[name] / 600 - pi).abs().sum(1).max() / 2) < 0.06


def spy(trainer, tower, call):
    """Have the calls of a tower's negatives go through a function."""
    spied = tower._replace(negatives=_Spied(tower.negatives, call))
    trainer.towers = tuple(spied if each is tower else each for each in trainer.towers)


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
    for side, other in zip(trainer.towers, trainer.towers[::-1]):
        own = side.bank.vectors.clone()
        now = fresh(side)
        index = side.negatives._index
        assert index.snapshot is other.refresher.snapshot
        original = type(index).__call__

        def seen(self, rows, queries, *more, original=original):
            found = original(self, rows, queries, *more)
            asked[id(self)] = (rows, queries)
            return found

        monkeypatch.setattr(type(index), "__call__", seen)
        asked[id(side.bank)] = own if query == "bank" else now
    trainer.step()
    for side in trainer.towers:
        rows, queries = asked[id(side.negatives._index)]
        torch.testing.assert_close(queries, asked[id(side.bank)][rows])


def test_a_step_encodes_each_side_once_and_writes_both_banks(steps):
    trainer = make(METHODS["importance"])
    steps(trainer, 4)
    before = [side.bank.written_at.clone() for side in trainer.towers]
    counts = [len(side.encoder.seen) for side in trainer.towers]
    encodings = trainer.encodings
    metrics = trainer.step()
    sides = trainer.towers
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
        for side in trainer.towers:
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
    state, snapshots = copy.deepcopy(first.state_dict()), first.snapshots()
    second = make(negatives, **sections)
    second.load_state_dict(state, snapshots)
    assert steps(second, 7) == expected[7:]
    for mine, theirs in zip(second.towers, whole.towers):
        assert torch.equal(mine.encoder.weight, theirs.encoder.weight)
        assert torch.equal(mine.bank.vectors, theirs.bank.vectors)
    assert second.encodings == whole.encodings
    losses = [metrics["loss"] for metrics in expected]
    assert all(loss == loss for loss in losses)


@pytest.mark.parametrize("name", ["infonce", "sogclr", "emc2", "importance", "hardest", "mined", "negative cache"])
def test_captions_of_one_image_are_no_negatives(name, steps):
    groups = torch.arange(N) // 4
    trainer = make(METHODS[name], groups=groups)
    met = 0
    for side in trainer.towers:

        def checked(batch, ticket, call=side.negatives.__call__):
            nonlocal met
            negatives, info = call(batch, ticket)
            same = groups[batch.rows][:, None] == groups[batch.candidate_rows]
            met += int(same.sum()) - len(batch.rows)
            assert float((negatives.weights * same).abs().max()) == 0
            return negatives, info

        spy(trainer, side, checked)
    steps(trainer, 8)
    assert met > 0


def test_mined_negatives_of_queries_alone_ask_no_index_of_queries(steps):
    """Left anchors see mined rows of the right side, which alone is indexed; right anchors see the batch's queries."""
    trainer = make(METHODS["mined, for the left alone"])
    left, right = trainer.towers
    found = steps(trainer, 12)
    assert left.refresher is None
    assert right.refresher.snapshot.step == 9
    assert set(left.encoder.seen) == {B}
    assert max(right.encoder.seen) > B
    assert all("left_short" in metrics and "right_short" not in metrics for metrics in found)
    assert found[-1]["left_extra_encodings"] == right.encoder.seen[-1] - B > 0
    full = make(METHODS["mined, for the left alone"], refresh={"every": 3, "unit": "steps", "mode": "full"})
    assert [metrics["left_short"] for metrics in steps(full, 2)] == [0, 0]  # the left bank is encoded anew as well
    both = make({"type": "mined"})
    steps(both, 6)
    assert all(max(tower.encoder.seen) > B for tower in both.towers)


def test_what_was_mined_once_trains_without_an_index_and_resumes(steps, tmp_path):
    """Left anchors see the documents that a folder lists for them, right anchors the queries of these."""
    first = make(METHODS["infonce"])
    left, right = (fresh(tower).numpy() for tower in first.towers)
    result = mine_hard_negatives(left, right, [(i, i) for i in range(N)], num_negatives=3)
    result.save(tmp_path / "mined")
    negatives = {"type": "mined", "path": str(tmp_path / "mined"), "draws": 2, "pick": "random"}
    whole = make(negatives)
    assert [tower.refresher for tower in whole.towers] == [None, None]
    drawn = []
    for side in whole.towers:

        def kept(rows, *, step, queries=None, call=side.negatives.draw):
            drawn.append((rows.tolist(), (ticket := call(rows, step=step, queries=queries)).own))
            return ticket

        side.negatives.draw = kept
    expected = steps(whole, 8)
    assert len(drawn) == 16
    for rows, own in drawn:
        assert all(set(ids) < set(result[i][0].tolist()) for i, ids in zip(rows, own.tolist()))
    assert any(not torch.equal(one, other) for (_, one), (_, other) in zip(drawn[::2], drawn[1::2]))  # by side
    first = make(negatives)
    steps(first, 4)
    second = make(negatives)
    second.load_state_dict(copy.deepcopy(first.state_dict()), first.snapshots())
    assert steps(second, 4) == expected[4:]
    with pytest.raises(ValueError, match=rf"mined for {N} rows among {N}, expected the {N - 1} training rows"):
        make(negatives, rows=N - 1)


def test_both_sides_draw_from_streams_of_their_own():
    trainer = make({**METHODS["importance"], "pool": False, "draws": 3}, rows=N)
    rows = torch.arange(B)
    left, right = (tower.negatives.draw(rows, step=0, queries=torch.eye(B, D)).further for tower in trainer.towers)
    assert not torch.equal(left, right)


def test_one_encoder_may_be_both_sides(steps):
    data, encoder = Features(5, 1), Linear(5, 1)
    trainer = made({"batches": {"batch_size": B}, "negatives": METHODS["emc2"], "run": {"steps": 9}, **INDEX},
                   [(encoder, data), (encoder, data)])  # fmt: skip
    before = encoder.weight.detach().clone()
    steps(trainer, 4)
    assert not torch.equal(before, encoder.weight)
    assert sum(len(group["params"]) for group in trainer.descent.optimiser.param_groups) == 1


def test_what_is_not_finite_stops_before_anything_changes(steps):
    trainer = make(METHODS["emc2"])
    steps(trainer, 3)
    right = trainer.towers[1].encoder
    forward = right.forward
    right.forward = lambda x: forward(x).index_fill(0, torch.tensor([2]), torch.nan)
    left = trainer.towers[0]
    before = left.encoder.weight.detach().clone(), left.bank.vectors.clone()
    with pytest.raises(NonFiniteError, match="step 3: the embedding of rows"):
        trainer.step()
    assert torch.equal(before[0], left.encoder.weight)
    assert torch.equal(before[1], left.bank.vectors)


@pytest.mark.parametrize("queue", [0, 24])
def test_moco_contrasts_with_the_other_sides_slow_keys(queue):
    """θ_k ← m θ_k + (1 − m) θ a side; anchors of one against keys of the other, as ALBEF and MoCo do for pairs."""
    trainer = make({"type": "moco", "queue": queue, "momentum": 0.75}, noisy=False)
    for _ in range(3):
        rows = upcoming(trainer)
        slow = [s.eval()(t.data.read(rows, None)).detach() for s, t in zip(trainer.slow, trainer.towers)]
        before = [s.weight.clone() for s in trainer.slow]
        kept = [None if t.negatives.keys is None else t.negatives.keys.clone() for t in trainer.towers]
        total = 0.0
        for a, b in ((0, 1), (1, 0)):
            mine, keys = embedded(trainer)[a][rows], slow[b]
            others = keys if not queue else kept[a] if kept[a] is not None else keys[:0]
            ids = rows if not queue else trainer.towers[a].negatives.ids[: len(others)]
            scores = (mine @ others.T.to(mine.dtype) / TEMPERATURE).masked_fill(
                (ids == rows[:, None]) | (ids < 0), -torch.inf
            )
            positive = (mine * keys).sum(1, keepdim=True) / TEMPERATURE
            total = total + (torch.cat((scores, positive), 1).logsumexp(1) - positive[:, 0]).mean() / 2
        weights = [tower.encoder.weight for tower in trainer.towers]
        rate = 0.5 * trainer.descent.schedule(trainer.descent.step_number)
        expected = [p.detach() - rate * g for p, g in zip(weights, torch.autograd.grad(total, weights))]
        trainer.step()
        for got, wanted, old, now in zip(weights, expected, before, trainer.slow):
            torch.testing.assert_close(got.detach(), wanted, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(now.weight, 0.75 * old + 0.25 * got.detach())


def test_a_proposal_adapts_to_the_staleness_between_the_sides(steps):
    proposal = {"type": "nearest", "k": 5, "adapt": True}
    trainer = make({**METHODS["importance"], "proposal": proposal}, refresh={
        "every": 4, "unit": "steps", "mode": "full", "check_every": 2, "probe_rows": 32,
    })  # fmt: skip
    steps(trainer, 6)
    for tower, other in zip(trainer.towers, trainer.towers[::-1]):
        probe = other.refresher.probe
        adapted, options = tower.negatives._index._proposal, {"k": 5, "temperature": TEMPERATURE, "adapt": True}
        expected = Nearest(other.refresher.snapshot, **options, probe=probe)
        assert (adapted.temperature, adapted.floor) == (expected.temperature, expected.floor) != (TEMPERATURE, 0.3)
        rows = probe.anchors.rows
        far = [float((probe.anchors.queries - each.bank.read(rows)).norm()) for each in (tower, other)]
        assert far[0] < 0.5 * far[1]  # asked with what its own bank holds
        now, swapped = (fresh(a)[rows] @ fresh(b)[probe.ids].T for a, b in ((tower, other), (other, tower)))
        assert float((probe.scores - now).norm()) < 0.5 * float((probe.scores - swapped).norm())


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"batches\.batch_size=41"):
        make(METHODS["infonce"], batch_size=41)
    with pytest.raises(ValueError, match="uniform draws"):
        make(METHODS["sogclr"], batches={"type": "knn", "batch_size": B, "neighbors": 4})
    config = {"batches": {"batch_size": B}, "run": {"steps": 9}}
    normed = nn.Sequential(Linear(5, 1), nn.BatchNorm1d(D).double())
    with pytest.raises(ValueError, match="encodes drawn rows in a second pass"):
        made({**config, "negatives": METHODS["importance, fresh queries"]},
             [(Linear(5, 1), Features(5, 1)), (normed, Features(5, 1))])  # fmt: skip
    wide = Linear(5, 1)
    wide.weight = nn.Parameter(torch.randn(D + 1, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match=re.escape("banks of shapes (40, 6) and (40, 7)")):
        made({**config, "negatives": METHODS["infonce"]}, [(Linear(5, 1), Features(5, 1)), (wide, Features(5, 1))])


@pytest.mark.parametrize(
    "batches", [{"type": "knn"}, {"type": "prosampler", "candidates": 20}], ids=["knn", "prosampler"]
)
def test_chosen_batches_are_refused_by_what_counts_on_uniform_ones_alone(batches, steps):
    """SogCLR's averages and EMC²'s chains take the batch for draws of the data; what weighs what is there does not."""
    batches = {**batches, "batch_size": B, "neighbors": 4}
    for name in ("sogclr", "isogclr", "emc2", "importance"):
        with pytest.raises(ConfigError, match=r"negatives\.type: .* take batches\.type=uniform .*in_batch, mined, dcl"):
            make(METHODS[name], batches=batches)
    others = {**METHODS["emc2"], "proposals": "index"}, {**METHODS["importance"], "batch": False}
    for negatives in (METHODS["mined"], METHODS["hardest"], {"type": "moco", "queue": 16}, *others):
        found = steps(make(negatives, batches=batches), 6)
        assert all(0 < metrics["loss"] < 10 for metrics in found)


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
    source = inspect.getsource(Trainer)
    assert not [name for name in registry.REGISTRY["negatives"] if name in source]
