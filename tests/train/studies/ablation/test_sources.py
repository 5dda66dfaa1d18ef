"""Noise of the size asked for, and two snapshots of a run."""

from __future__ import annotations

import pytest
import torch

from negbank import Snapshot
from negbank.proposals import HeadTail
from negbank.train.commands import main
from negbank.train.studies.ablation.sources import moved, noise_size
from negbank.train.studies.ablation.sweep import ablate


@pytest.mark.parametrize("cosine", [1.0, 0.97, 0.5, 0.05])
def test_moved_rows_are_at_the_cosine_asked_for(cosine, clustered):
    z = clustered(500, dim=8).double()
    z = torch.nn.functional.normalize(z, dim=1)
    assert float(torch.cosine_similarity(z, moved(z, cosine, seed=5), dim=1).mean()) == pytest.approx(cosine, abs=1e-6)


def test_a_cosine_out_of_reach_is_said():
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"cosine=0.2: noise moves these rows to 0.9\d* at most"):
        noise_size(z, torch.tensor([[3.0, 1.0]], dtype=torch.float64), 0.2)


@pytest.fixture
def saved(tmp_path, clustered):
    """Saves rows as a snapshot; their folder."""
    rows = clustered(30, dim=5, clusters=3)

    def save(name, step, vectors=rows, **options):
        Snapshot.build(vectors, step=step, factory="exact", **options).save(tmp_path / name)
        return str(tmp_path / name)

    return save, rows


@pytest.fixture
def from_snapshots(study, make):
    """Ablates one snapshot seen from another."""
    return lambda bank, truth, **changes: study(
        make(source={"type": "snapshots", "bank": bank, "truth": truth}, **changes)
    )


def test_two_snapshots_are_bank_and_truth(no_figures, from_snapshots, saved, tmp_path, table):
    save, rows = saved
    fresh = moved(torch.nn.functional.normalize(rows, dim=1), 0.9, seed=2)
    bank, truth = save("old", 10), save("new", 25, fresh)
    found = from_snapshots(bank, truth, anchors=30, budgets=[1, 4])
    assert str(found).startswith("For this run: ")
    rows = table(tmp_path / "out")
    assert {row["level"] for row in rows} == {"step 10 seen from 25"}
    assert float(rows[0]["staleness"]) == pytest.approx(0.1, abs=1e-4)
    direct = ablate(
        Snapshot.load(bank), fresh, {"HeadTail": lambda s: HeadTail(s, 4, 0.1)},
        temperatures=0.1, budgets=[1, 4], anchors=30,
    )  # fmt: skip
    mine = [row for row in rows if row["proposal"].startswith("HeadTail")]
    assert [float(row["bias"]) for row in mine] == pytest.approx([row["bias"] for row in direct], rel=1e-5)


def test_snapshots_that_do_not_fit_are_refused(from_snapshots, saved, tmp_path, clustered):
    save, rows = saved
    old, new = save("old", 10), save("new", 20)
    small, half = save("small", 30, rows[:20]), save("half", 40, written=torch.arange(30) < 20)
    few = save("few", 5, rows[:7]), save("fewer", 6, rows[:7])
    for bank, truth, message in (
        (new, old, "of step 10, not newer than .* of step 20"),
        (old, old, "not newer"),
        (old, small, r"of shape \(20, 5\)"),
        (old, half, "only 20 of its 30 rows were ever written"),
        (*few, "N ≥ 8"),
        (str(tmp_path / "none"), new, "no such folder"),
    ):
        with pytest.raises(ValueError, match=message):
            from_snapshots(bank, truth)
    assert not (tmp_path / "out").exists()


def test_a_damaged_snapshot_ends_with_code_1(config_file, saved, tmp_path, capsys):
    save, _ = saved
    old, new = save("old", 10), save("new", 20)
    (tmp_path / "new" / "vectors.npy").write_bytes(b"x")
    given = (f"source.bank={old}", f"source.truth={new}")
    code = main(["ablate", str(config_file), "source.type=snapshots", *given])
    assert code == 1
    assert "checksum differs" in capsys.readouterr().err
