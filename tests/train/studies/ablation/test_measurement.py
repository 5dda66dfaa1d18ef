"""Every exact measure against dense matrices, loops and autograd."""

from __future__ import annotations

import math

import pytest
import torch

from negbank import Exclusions, Snapshot
from negbank.proposals import Anchors, Cells, HeadTail, Nearest, StaleSoftmax, Uniform
from negbank.samplers.metropolis import acceptance
from negbank.train.studies.ablation import measurement
from negbank.train.studies.ablation.measurement import MEASURES, Key, measure
from negbank.train.studies.ablation.sources import moved
from negbank.train.studies.ablation.sweep import ablate

BUDGETS = [1, 3, 8]


def direction(z_i, z):
    """∂ cos(x, z_j)/∂x at x = z_i for every row: (N, D), by autograd."""
    x = z_i.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(torch.cosine_similarity(x, z_j, dim=0), x)[0] for z_j in z])


def by_hand(truth, i, allowed, log_q, temperature, budget):
    """Every exact measure of one anchor from the dense transition matrix, loops and autograd."""
    rows = allowed.nonzero().flatten()
    z, q = truth[rows], log_q[rows].exp()
    pi = torch.softmax(z @ truth[i] / temperature, 0)
    w = (pi / q).log()
    moves = q * acceptance(w.expand(len(w), -1), w[:, None].expand(-1, len(w)))
    matrix = moves.clone().fill_diagonal_(0.0)
    matrix += torch.diag(1 - matrix.sum(1))
    law = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64) @ torch.linalg.matrix_power(matrix, budget)
    gradients = direction(truth[i], z)
    mu, mean = pi @ gradients, law @ gradients
    return {
        "tv": float((law - pi).abs().sum() / 2),
        "bias": float((mean - mu).norm() / mu.norm()),
        "variance": float(law @ (gradients - mean).square().sum(1) / mu.square().sum()),
        "ess": 1 / sum(float(p) ** 2 / float(x) for p, x in zip(pi, q)),
        "sup": max(float(p) / float(x) for p, x in zip(pi, q)),
        "acceptance": float(pi @ moves.sum(1)),
        "encodings": sum(1 - (1 - float(x)) ** budget for x in q),
    }


@pytest.mark.parametrize("query", ["bank", "fresh"])
@pytest.mark.parametrize("build", [Uniform, lambda s, **k: Nearest(s, 5, 0.2, **k), lambda s, **k: HeadTail(s, 5, **k)])
@pytest.mark.parametrize("grouped", [False, True])
def test_every_exact_measure_is_that_of_the_dense_matrix(world, build, query, grouped):
    truth, bank = world
    exclude = Exclusions(40, groups=torch.arange(40) // 5) if grouped else bank.exclude_self
    proposal, anchors = build(bank, exclude=exclude), torch.tensor([0, 13, 39])
    found = measure(bank, truth, anchors, proposal, Key("p", 0.15, "bank", query), budgets=BUDGETS, exclude=exclude)
    queries = bank.vectors if query == "bank" else truth.float()
    every = torch.arange(40).expand(3, -1)
    log_q = proposal(Anchors(anchors, queries[anchors])).log_prob(every)
    allowed = exclude.allowed(anchors, every)
    assert int(allowed[0].sum()) == (35 if grouped else 39)
    for a, i in enumerate(anchors.tolist()):
        for k, budget in enumerate(BUDGETS):
            for name, expected in by_hand(truth, i, allowed[a], log_q[a], 0.15, budget).items():
                got = float(found.values[name][a, k])
                assert got == pytest.approx(expected, rel=1e-9, abs=1e-12), (name, i, budget)
    assert found.staleness == pytest.approx(0.1, abs=1e-3)
    assert (found.values["ms"] > 0).all()
    assert torch.allclose(found.values["ess_per_ms"], torch.tensor(BUDGETS) * found.values["ess"] / found.values["ms"])


def test_uniform_has_its_closed_forms(world):
    truth, bank = world
    pi = torch.softmax((truth @ truth.T / 0.3).fill_diagonal_(-torch.inf), 1)
    rows = ablate(bank, truth, {"u": Uniform}, temperatures=0.3, budgets=BUDGETS, anchors=40)
    assert [row["budget"] for row in rows] == BUDGETS
    for row in rows:
        assert row["ess"] == pytest.approx(float((1 / (39 * pi.square().sum(1))).mean()))
        assert row["sup"] == pytest.approx(float((39 * pi.amax(1)).mean()))
        assert row["encodings"] == pytest.approx(39 * (1 - (1 - 1 / 39) ** row["budget"]))
        assert row["ess_per_encoding"] == pytest.approx(row["budget"] * row["ess"] / row["encodings"])


def test_a_perfect_proposal_has_no_bias_and_accepts_all(world):
    truth, _ = world
    bank = Snapshot.build(truth, factory="exact")
    rows = ablate(bank, truth, {"p": lambda s: StaleSoftmax(s, 0.5, 1e-9)}, temperatures=0.5, budgets=[1], anchors=40)
    assert rows[0]["tv"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["bias"] == pytest.approx(0, abs=1e-6)
    assert (rows[0]["ess"], rows[0]["acceptance"]) == pytest.approx((1, 1), abs=1e-6)
    assert rows[0]["variance"] > 0.1


def test_more_staleness_is_more_bias_and_more_draws_less(world):
    truth, _ = world
    found = [
        ablate(
            Snapshot.build(moved(truth, cosine, seed=0), factory="exact"),
            truth,
            {"n": lambda s: Nearest(s, 8)},
            budgets=[1, 32],
        )
        for cosine in (0.99, 0.6)
    ]
    assert found[0][0]["bias"] < found[1][0]["bias"]
    assert all(rows[1]["bias"] < rows[0]["bias"] and rows[1]["tv"] < rows[0]["tv"] for rows in found)


def test_blocks_of_anchors_change_nothing(world, monkeypatch):
    truth, bank = world
    whole = ablate(bank, truth, {"c": Cells}, budgets=BUDGETS, anchors=30)
    sizes = []
    exact = measurement._exact
    monkeypatch.setattr(measurement, "BLOCK", 7 * 40)
    monkeypatch.setattr(
        measurement, "_exact", lambda truth, rows, *rest: sizes.append(len(rows)) or exact(truth, rows, *rest)
    )
    parts = ablate(bank, truth, {"c": Cells}, budgets=BUDGETS, anchors=30)
    assert sizes == [7, 7, 7, 7, 2]
    for a, b in zip(whole, parts, strict=True):
        for name in MEASURES:
            if "ms" not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-12)


def test_rows_that_all_lie_on_the_anchor_have_no_direction_and_no_bias():
    same = torch.tensor([[1.0, 0.0]]).expand(8, -1)
    (row,) = ablate(Snapshot.build(same, factory="exact"), same, {"u": Uniform}, budgets=[2])
    assert math.isnan(row["bias"])
    assert math.isnan(row["variance"])
    assert row["tv"] == pytest.approx(0, abs=1e-12)


def test_a_bank_that_is_half_written_is_measured_where_it_is(world):
    truth, _ = world
    written = torch.arange(40) < 20
    bank = Snapshot.build(moved(truth, 0.9, seed=3), factory="exact", written=written)
    rows = ablate(bank, truth, {"n": lambda s: Nearest(s, 5)}, budgets=[1], anchors=40)
    assert rows[0]["anchors"] == 20
    assert rows[0]["staleness"] == pytest.approx(0.1, abs=0.05)
