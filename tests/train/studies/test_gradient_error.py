"""The exact gradient against autograd of the textbook losses, and a run that is left as it was."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from negbank import Exclusions
from negbank.train.build import build
from negbank.train.config import ConfigError, parse
from negbank.train.data.contract import Pairs, Splits
from negbank.train.data.tensors import TensorData
from negbank.train.run import start
from negbank.train.studies.gradient_error import FixedViews, errors, exact_gradient, gradient_error
from negbank.train.towers import directions

RUN = {
    "data": {"type": "digits", "rows": 40},
    "encoder": {"width": 8, "features": 16, "projector": {"hidden": 16, "dim": 8}},
    "batches": {"batch_size": 8},
    "refresh": {"every": 2, "unit": "steps"},
    "eval": {"every": 100, "max_rows": 30, "global_rows": 20, "knn_k": 5},
    "run": {"steps": 6, "log_every": 1, "precision": "float32"},
}
METHODS = {
    "in_batch": {},
    "sogclr": {},
    "moco": {"queue": 24},
    "negative_cache": {"refresh": 0.1},
    "importance": {"draws": 4, "proposal": {"type": "nearest", "k": 4}},
    "emc2": {"draws": 2, "proposal": {"type": "nearest", "k": 4, "adapt": True}},
}


def trainer(steps=3, **sections):
    found = build(parse({**RUN, **sections})[0]).trainer
    for _ in range(steps):
        found.refresh()
        found.step()
    return found


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, x):
        return nn.functional.normalize(self.layer(x.flatten(1)), dim=1)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_exact_gradient_of_views_is_that_of_the_textbook_loss(grouped):
    torch.manual_seed(0)
    net, views, total = Net(), torch.randn(2, 7, 3, 2, 2), 0.0
    labels = torch.tensor([0, 0, 1, -1, 2, 2, -1]) if grouped else torch.arange(7)
    z = net(views.flatten(0, 1)).unflatten(0, (2, 7))
    for v in range(2):
        for i in range(7):
            alike = {i} | {j for j in range(7) if labels[i] == labels[j] >= 0}
            others = torch.stack([z[u, j] for u in range(2) for j in range(7) if j not in alike])
            total = total - z[v, i] @ z[1 - v, i] / 0.3 + (others @ z[v, i] / 0.3).exp().mean().log()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / 14, list(net.parameters()))])
    found = exact_gradient(
        [net],
        lambda t: iter([views[0], views[1]]),
        directions(1),
        exclude=Exclusions(7, groups=labels),
        temperature=0.3,
    )
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_the_exact_gradient_of_pairs_is_that_of_both_directions(shared):
    torch.manual_seed(0)
    nets, inputs, total = [Net(), Net()], torch.randn(2, 7, 12), 0.0
    nets = nets[:1] * 2 if shared else nets
    left, right = (net(x) for net, x in zip(nets, inputs))
    for mine, theirs in ((left, right), (right, left)):
        for i in range(7):
            others = torch.stack([theirs[j] for j in range(7) if j != i])
            total = total - mine[i] @ theirs[i] / 0.3 + (others @ mine[i] / 0.3).exp().mean().log()
    parameters = list(dict.fromkeys(p for net in nets for p in net.parameters()))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(total / 14, parameters)])
    found = exact_gradient(nets, lambda t: iter([inputs[t]]), directions(2), exclude=Exclusions(7), temperature=0.3)
    assert torch.allclose(found, expected, atol=1e-6)


def test_full_batches_of_all_negatives_have_no_error_and_small_ones_do():
    """γ = 1 over the full batch is ∇F; with the positive in the denominator, as SimCLR has it, it is not quite."""
    batches = {"batch_size": 40}
    whole = gradient_error(trainer(batches=batches, negatives={"type": "sogclr", "gamma": 1.0}), draws=2)
    assert whole["error"] < 1e-3
    assert whole["cosine"] == pytest.approx(1, abs=1e-4)
    small = gradient_error(trainer(negatives={"type": "sogclr", "gamma": 1.0}), draws=2)
    assert small["error"] > 0.1


def test_bias_and_spread_are_told_apart():
    generator = torch.Generator().manual_seed(0)
    exact = torch.full((50,), 2.0)
    found = errors(1.5 * exact + 3 * torch.randn(4000, 50, generator=generator), exact)
    assert found["bias"] == pytest.approx(0.5, abs=0.03)
    assert found["spread"] == pytest.approx(3 * math.sqrt(50) / float(exact.norm()), rel=0.03)
    assert found["error"] ** 2 == pytest.approx(found["bias"] ** 2 + found["spread"] ** 2, rel=1e-3)
    none = errors(exact + 3 * torch.randn(100, 50, generator=generator), exact)
    assert none["bias"] < none["noise"]


@pytest.mark.parametrize("method", METHODS)
def test_the_run_goes_on_as_without_it(method, tmp_path):
    def logged(name, **sections):
        negatives = {"type": method, **METHODS[method]}
        config, _ = parse(
            {**RUN, "negatives": negatives, "run": {**RUN["run"], "dir": str(tmp_path / name)}, **sections}
        )
        summary = start(config)
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["event"] != "gradient"], len(rows), summary["encodings"]

    rows, count, encodings = logged("without")
    measured, more, same = logged("with", gradient_error={"steps": [1, 3, 6], "draws": 2})
    assert rows == measured
    assert more == count + 3
    assert encodings == same


def test_views_are_fixed():
    found, rows = trainer(steps=0, negatives={"type": "in_batch"}), torch.arange(40)
    views, again = (FixedViews(found) for _ in range(2))
    first, second = (views.read(0, rows, torch.full((40,), view)) for view in (0, 1))
    assert torch.equal(first, again.read(0, rows, torch.zeros(40, dtype=torch.long)))
    assert not torch.equal(first, second)
    assert torch.equal(torch.cat(list(views.blocks(0))), torch.cat((first, second)))


def test_pairs_are_measured_too():
    rows = torch.rand(40, 12, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(TensorData(rows), TensorData(rows.flip(1)))
    config, _ = parse({"batches": {"batch_size": 40}, "negatives": {"type": "sogclr", "gamma": 1.0},
                       "eval": {"type": "retrieval"}, "run": {"steps": 6, "precision": "float32"}})  # fmt: skip
    torch.manual_seed(0)
    found = build(config, encoder=[Net(), Net()], splits=Splits(pairs, pairs)).trainer
    found.step()
    measured = gradient_error(found, draws=2)
    assert measured["error"] < 1e-3  # the full batch, with the exact normaliser


def test_steps_beyond_the_run_are_refused():
    with pytest.raises(ConfigError, match=r"gradient_error\.steps: \[7\] of run\.steps=6"):
        parse({**RUN, "gradient_error": {"steps": [7]}})
