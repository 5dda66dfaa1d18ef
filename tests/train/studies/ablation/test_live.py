"""An ablation inside of a run, which goes on as without it."""

from __future__ import annotations

import json

import pytest

from negbank.train.config import ConfigError, parse
from negbank.train.run import RunError, evaluate, resume, start
from negbank.train.studies.ablation.store import OUTPUTS

PROPOSALS = [{"type": "uniform"}, {"type": "head_tail", "k": 4}]


RUN = {
    "data": {"type": "digits"},
    "encoder": {"width": 16, "features": 32, "projector": {"hidden": 32, "dim": 16}},
    "batches": {"batch_size": 16},
    "negatives": {"type": "emc2", "proposal": {"k": 8}, "draws": 1},
    "refresh": {"every": 4, "unit": "steps", "mode": "full", "probe_rows": 32},
    "eval": {"every": 50, "global_rows": 100},
}


LIVE = {"every": 3, "anchors": 5, "budgets": [1, 4], "proposals": PROPOSALS}


def a_run(tmp_path, name="run", negatives=None, **changes):
    data = {**RUN, "negatives": negatives or RUN["negatives"], **changes}
    return parse({**data, "run": {"steps": 12, "checkpoint_every": 5, "log_every": 2, "dir": str(tmp_path / name)}})[0]


def test_a_run_measures_itself_before_its_refreshes_and_stays_as_it_is(tmp_path, table):
    start(a_run(tmp_path, "plain"))
    start(a_run(tmp_path, ablation=LIVE))
    plain, ablated = tmp_path / "plain", tmp_path / "run"
    assert (plain / "metrics.jsonl").read_bytes() == (ablated / "metrics.jsonl").read_bytes()
    assert not (plain / "ablation").exists()
    assert {p.name for p in (ablated / "ablation").iterdir()} == set(OUTPUTS)
    rows = table(ablated / "ablation")
    assert list(dict.fromkeys(row["level"] for row in rows)) == ["step 3", "step 6", "step 9", "step 12"]
    staleness = {row["level"]: float(row["staleness"]) for row in rows}
    assert staleness["step 12"] > 1e-4  # refreshes are at 4 and 8: at step 12 the bank is four steps old, not none
    assert {float(row["temperature"]) for row in rows} == {0.1}
    assert "For this run: " in (ablated / "ablation" / "report.html").read_text()


def test_a_resumed_run_has_the_same_ablation(no_figures, tmp_path, table):
    start(a_run(tmp_path, ablation=LIVE))
    folder = tmp_path / "run"
    whole = table(folder / "ablation")
    (folder / "checkpoints" / "step_00000012").rename(tmp_path / "gone")
    with (folder / "ablation" / "ablation.jsonl").open("r+b") as file:  # killed while it wrote the cells of step 12
        file.truncate(file.seek(0, 2) - 700)
    half = (folder / "ablation" / "ablation.jsonl").read_bytes()
    evaluate(folder)
    assert (folder / "ablation" / "ablation.jsonl").read_bytes() == half
    resume(folder)
    assert table(folder / "ablation") == whole
    with pytest.raises(RunError, match="holds a run already"):
        start(a_run(tmp_path, ablation=LIVE))
    start(a_run(tmp_path, ablation={**LIVE, "every": 12}), overwrite=True)
    assert {row["level"] for row in table(folder / "ablation")} == {"step 12"}


def test_a_run_without_index_negatives_can_be_ablated_too(no_figures, tmp_path, table):
    start(a_run(tmp_path, negatives={"type": "in_batch"}, ablation={**LIVE, "queries": ["bank", "fresh"]}))
    assert {row["query"] for row in table(tmp_path / "run" / "ablation")} == {"bank", "fresh"}
    start(a_run(tmp_path, "plain", negatives={"type": "in_batch"}))
    ablated, plain = ([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
                      for name in ("run", "plain"))  # fmt: skip
    assert [row for row in ablated if row["event"] != "refresh"] == plain  # encodings, too: refreshes are not its own


def test_a_live_ablation_that_cannot_be_is_said_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"ablation.proposals\[0\].k=5000: there are only \d+ other training rows"):
        start(a_run(tmp_path, ablation={**LIVE, "proposals": [{"type": "nearest", "k": 5000}]}))
    with pytest.raises(ConfigError, match=r"ablation\.budgets: is empty"):
        a_run(tmp_path, ablation={**LIVE, "budgets": []})
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
