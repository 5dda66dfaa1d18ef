from __future__ import annotations

import math

import pytest
import torch

from negbank import EmbeddingBank, Refresher
from negbank.proposals import measure


class Encoder:
    """Embeddings that turn by `angle` in the plane of the first two axes: cos between two angles is known."""

    def __init__(self, rows=200):
        phase = torch.rand(rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 * math.pi
        self.phase, self.angle, self.encoded = phase, 0.0, 0

    def __call__(self, rows):
        self.encoded += len(rows)
        phase = self.phase[rows] + self.angle
        return torch.stack((phase.cos(), phase.sin()), 1).float()


def test_full_mode_rewrites_the_bank_and_measures_drift_exactly():
    encoder, bank = Encoder(), EmbeddingBank(200, 2)
    refresher = Refresher(bank, every=10, mode="full", encode=encoder, probe_rows=50)
    first = refresher.step(0)
    assert (first.reason, first.version, first.swapped) == ("first", 0, True)
    assert math.isnan(first.drift)
    encoder.angle = 0.3
    assert refresher.step(5) is None
    report = refresher.step(10)
    assert (report.step, report.version, report.reason) == (10, 1, "scheduled")
    assert report.drift == pytest.approx(1 - math.cos(0.3), abs=1e-6)
    assert report.overlap == 1.0  # a common rotation changes no neighbour
    assert refresher.drift() == pytest.approx(0.0, abs=1e-6)
    assert (bank.written_at == 10).all()
    assert encoder.encoded == 200 + 50 + 200 + 50


def test_rolling_mode_freezes_what_training_wrote():
    encoder, bank = Encoder(), EmbeddingBank(200, 2)
    refresher = Refresher(bank, every=4, encode=encoder, probe_rows=200)
    assert refresher.step(0) is None
    rows = torch.arange(0, 200, 2)
    bank.write(rows, encoder(rows), step=1)
    report = refresher.step(4)
    assert report.coverage == 0.5
    assert (report.mean_age, report.max_age) == (3.0, 3)
    assert torch.equal(refresher.snapshot.rows, rows)
    frozen = refresher.snapshot.vectors.clone()
    encoder.angle = 1.0
    bank.write(rows, encoder(rows), step=5)
    assert torch.equal(refresher.snapshot.vectors, frozen)
    assert refresher.drift() == pytest.approx(1 - math.cos(1.0), abs=1e-6)


def test_staleness_is_measured_at_every_swap_and_check_and_resumes():
    encoder, bank, calls = Encoder(), EmbeddingBank(200, 2), []

    def measured(snapshot, step):
        calls.append((snapshot.version, step))
        return measure(snapshot, torch.arange(20), encoder, draws=50, generator=torch.Generator().manual_seed(step))

    options = {"every": 10, "mode": "full", "encode": encoder, "check_every": 4, "measure": measured}
    refresher = Refresher(bank, **options)
    for step in range(13):
        refresher.step(step)
    assert calls == [(0, 0), (0, 4), (0, 8), (1, 10), (1, 12)]
    other = Refresher(bank, **options)
    other.load_state_dict(refresher.state_dict(), refresher.snapshot)
    for mine, theirs in zip(refresher.probe.anchors + refresher.probe[1:], other.probe.anchors + other.probe[1:]):
        assert torch.equal(mine, theirs)


def test_every_counts_epochs_or_steps_and_a_step_with_nothing_due_looks_at_no_row(monkeypatch):
    encoder, looked = Encoder(), []
    whole = EmbeddingBank.written.fget
    monkeypatch.setattr(EmbeddingBank, "written", property(lambda self: looked.append(1) or whole(self)))
    for unit, due in (("epochs", 30), ("steps", 3)):
        bank = EmbeddingBank(200, 2)
        refresher = Refresher(bank, every=3, unit=unit, epoch=10)
        bank.write(torch.arange(200), encoder(torch.arange(200)), step=0)
        for step in range(1, due):
            assert refresher.step(step) is None
        assert not looked
        assert refresher.step(due).reason == "first"
        looked.clear()
        assert refresher.step(due + 1) is None
        assert not looked


def test_drift_past_its_bound_refreshes_early():
    encoder, bank = Encoder(), EmbeddingBank(200, 2)
    refresher = Refresher(bank, every=1000, mode="full", encode=encoder, max_drift=0.05, check_every=5)
    refresher.step(0)
    encoder.angle = 0.2
    assert refresher.step(5) is None
    encoder.angle = 0.5
    assert refresher.step(7) is None
    report = refresher.step(10)
    assert report.reason.startswith("drift 0.122 > 0.05")
    assert refresher.step(10) is None


def test_a_first_index_that_misses_its_recall_is_an_error_and_a_later_one_is_not_swapped_in(clustered):
    coarse = clustered(3000, dim=16, clusters=4, spread=1.5)
    bank = EmbeddingBank(3000, 16)
    bank.write(torch.arange(3000), coarse, step=0)
    with pytest.raises(ValueError, match="choose a finer index or lower the target"):
        Refresher(bank, every=1, factory="PQ2x4", target_recall=0.95).step(0)
    refresher = Refresher(bank, every=1, factory="Flat")
    refresher.step(0)
    kept = refresher.snapshot
    refresher.factory = "PQ2x4"
    report = refresher.step(1)
    assert not report.swapped
    assert "kept version 0" in report.reason
    assert refresher.snapshot is kept


def test_state_needs_the_snapshot_it_names():
    encoder, bank = Encoder(), EmbeddingBank(200, 2)
    refresher = Refresher(bank, every=1, mode="full", encode=encoder)
    refresher.step(0)
    state, other = refresher.state_dict(), Refresher(bank, every=1, mode="full", encode=encoder)
    with pytest.raises(ValueError, match="version None"):
        other.load_state_dict(state, None)
    other.load_state_dict(state, refresher.snapshot)
    assert other.snapshot is refresher.snapshot


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "every=0"),
        ({"every": 1, "mode": "lazy"}, "mode='lazy'"),
        ({"every": 1, "unit": "days"}, "unit='days'"),
        ({"every": 1, "max_drift": 3.0, "encode": Encoder()}, "max_drift=3.0"),
        ({"every": 1, "mode": "full"}, "encode=None"),
        ({"every": 1, "max_drift": 0.1}, "encode=None"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Refresher(EmbeddingBank(5, 2), **arguments)
