"""Steps on a device, by a stand-in that refuses what a GPU refuses and counts what the host waits for."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from negbank import EmbeddingBank, Refresher
from negbank.proposals import measure
from negbank.samplers.metropolis import scan, scan_reference
from negbank.train.build import build
from negbank.train.config import parse
from negbank.train.descent import NonFiniteError
from negbank.train.device import settled

PATH = Path(__file__).parents[2] / "benchmarks" / "device_stand_in.py"
SPEC = importlib.util.spec_from_file_location("device_stand_in", PATH)
stand_in = sys.modules["device_stand_in"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stand_in)
SYNCS = {
    "in_batch": 4, "dcl": 4, "hcl": 4, "sogclr": 6, "isogclr": 8, "moco": 6, "negative_cache": 13, "hardest": 18,
    "mined": 21, "importance": 27, "emc2": 33,
}  # fmt: skip
"""At most so many a step; measured by benchmarks/device_syncs.py."""


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Torch has none for the device that the stand-in borrows."""
    real = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, **k: contextlib.nullcontext() if kind == "meta" else real(kind, **k)
    )


def trained(name, device):
    config = {
        "data": {"type": "digits"}, "batches": {"batch_size": 12}, "negatives": {"type": name},
        "run": {"steps": 12, "device": device, "precision": "float32"},
        "encoder": {"projector": {"dim": 16}, "width": 8, "features": 16},
        "refresh": {"every": 2, "unit": "steps", "mode": "full"},
    }  # fmt: skip
    return build(parse(config)[0]).trainer


@pytest.mark.parametrize("name", SYNCS)
def test_steps_are_those_of_the_cpu_and_wait_a_few_times(name):
    here = trained(name, "cpu")
    expected = [(here.refresh(), here.step())[1]["loss"] for _ in range(2)]  # then Adam has made rounding visible, and
    with stand_in.StandIn() as seen:
        there = trained(name, "meta")
        found = [settled((there.refresh(), there.step())[1])["loss"] for _ in range(2)]
        there.refresh()  # cells of the next snapshot are others
        seen.clear()
        there.step()
    assert found == pytest.approx(expected, abs=1e-4)  # of normalisation and sums, by rounding
    assert sum(seen.syncs.values()) <= SYNCS[name], seen.syncs


def test_a_gradient_that_is_not_finite_is_refused_before_the_step_on_a_device_too():
    with stand_in.StandIn():
        trainer = trained("in_batch", "meta")
        weight = next(iter(trainer.towers[0].encoder.parameters()))
        trainer.step()
        weight.data.fill_(float("nan"))
        before = [p.held.clone() for p in trainer.towers[0].encoder.parameters()]
        with pytest.raises(NonFiniteError, match="the embedding of rows"):
            trainer.step()
        after = [p.held for p in trainer.towers[0].encoder.parameters()]
    assert all(torch.equal(a, b) or bool(a.isnan().all()) for a, b in zip(before, after))


def test_chains_walk_on_the_host_in_a_few_launches():
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(2, 6, 9, generator=random)
    proposals, kernels = torch.randint(9, (6, 40), generator=random), torch.arange(40) % 2
    log_u, start = torch.rand(6, 40, generator=random).log(), torch.full((6,), -1)
    expected = scan_reference(weights, proposals, kernels, log_u, start, burn_in=10)
    with stand_in.StandIn() as seen:
        moved = [each.to("meta") for each in (weights, proposals)]
        began = start.to("meta")
        seen.clear()
        found = scan(*moved, kernels, log_u, began, burn_in=10)
        assert [found.state.device.type, found.counts.device.type] == ["meta", "meta"]
        assert sum(seen.launches.values()) <= 10
        assert torch.equal(found.state.cpu(), expected.state)
        assert torch.equal(found.counts.cpu(), expected.counts)
    assert torch.equal(found.accepted, expected.accepted)


def test_a_probe_is_taken_up_where_the_bank_is():
    rows = torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    bank = EmbeddingBank(50, 4)
    bank.write(torch.arange(50), rows, step=0)

    def probe(snapshot, step):
        return measure(snapshot, torch.arange(8), lambda ids: rows[ids], draws=32, generator=torch.Generator())

    first = Refresher(bank, measure=probe)
    first.step(0)
    state = first.state_dict()  # as a checkpoint holds it, on the CPU
    with stand_in.StandIn():
        second = Refresher(EmbeddingBank(50, 4, device="meta"))
        second.load_state_dict(state, first.snapshot)
        kept = [*second.probe.anchors, *second.probe[1:]]
        assert all(each.device.type == "meta" for each in kept)
        assert torch.equal(second.probe.scores.cpu(), first.probe.scores)
