"""A comparison through interruptions, reruns, divergence and choices."""

from __future__ import annotations

import json
import math
import re
import statistics

import pytest

from negbank.train.run import read_config
from negbank.train.studies.compare import run as running
from negbank.train.studies.compare.processes import CompareError
from negbank.train.studies.compare.results import rows
from negbank.train.studies.compare.trials import ENCODINGS, STEPS, TUNING

RUN = {
    "data": {"type": "digits", "rows": 300},
    "encoder": {"width": 8, "features": 16, "projector": {"hidden": 16, "dim": 8}},
    "batches": {"batch_size": 8},
    "refresh": {"every": 2, "unit": "steps"},
    "eval": {"every": 2, "max_rows": 100, "global_rows": 50},
    "run": {"steps": 6, "log_every": 2},
}


METHODS = {
    "simclr": {"negatives": {"type": "in_batch"}},
    "moco": {"negatives": {"type": "moco", "queue": 16}},
    "logq": {"negatives": {"type": "importance", "draws": 4, "proposal": {"type": "nearest", "k": 4}}},
}


CLOCK = re.compile(r"ms_")


def test_a_comparison_and_its_results(tmp_path, in_process, study, comparison, read):
    table = study(comparison(tmp_path, seeds=[0, 1], gradient_error={"steps": [4], "draws": 2}))
    ran, _ = in_process
    assert len(ran) == 3 * 2 + 2 * 2  # the reference's equal steps are its equal encodings
    found = read(tmp_path / "results.csv")
    assert len(found) == 2 * 3 * 2
    by = {(row["method"], row["budget"], row["seed"]): row for row in found}
    moco = by["moco", ENCODINGS, "0"]
    assert (moco["steps"], moco["encodings"]) == ("3", by["simclr", STEPS, "0"]["encodings"])  # keys cost as much again
    assert {k: v for k, v in by["simclr", STEPS, "1"].items() if k != "budget"} == {
        k: v for k, v in by["simclr", ENCODINGS, "1"].items() if k != "budget"
    }
    assert float(by["simclr", STEPS, "0"]["encodings"]) == 6 * 2 * 8
    summary = json.loads((tmp_path / "logq" / "steps" / "lr0.001" / "seed0" / "summary.json").read_text())
    assert float(by["logq", STEPS, "0"]["knn_accuracy"]) == pytest.approx(summary["knn_accuracy"])
    assert float(by["logq", STEPS, "0"]["extra_bytes"]) == sum(summary["bytes"].values())
    assert (by["logq", STEPS, "0"]["device"], by["logq", STEPS, "0"]["precision"]) == (
        summary["device"],
        summary["precision"],
    )
    means = {(row["method"], row["budget"]): row for row in read(tmp_path / "summary.csv")}
    values = [float(by["moco", STEPS, seed]["linear_probe_accuracy"]) for seed in "01"]
    assert float(means["moco", STEPS]["linear_probe_accuracy"]) == pytest.approx(statistics.fmean(values))
    assert float(means["moco", STEPS]["linear_probe_accuracy_sd"]) == pytest.approx(statistics.stdev(values), abs=1e-7)
    assert means["moco", STEPS]["count"] == "2"
    assert [(row["method"], row["seed"], row["step"]) for row in read(tmp_path / "gradient.csv")] == [
        (name, "0", "4") for name in METHODS
    ]
    page = (tmp_path / "report.html").read_text()
    for text in ("At equal steps, the two highest of 3", "At equal encodings", "Error of the gradient",
                 "data:image/png;base64", "momentum encoder",
                 "methods.logq.negatives.draws", "<summary>12 runs</summary>"):  # fmt: skip
        assert text in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert all(method in table for method in METHODS)


def test_an_interrupted_comparison_goes_on_to_the_same_results(tmp_path, in_process, study, comparison, read):
    ran, limit = in_process
    study(comparison(tmp_path / "whole"))
    whole, ran[:], limit[0] = len(ran), [], 1
    with pytest.raises(KeyboardInterrupt):
        study(comparison(tmp_path / "cut"))
    assert len(read(tmp_path / "cut" / "results.csv")) == 1
    limit[0] = math.inf
    study(comparison(tmp_path / "cut"))
    assert len(ran) == len(set(ran)) == whole  # none of them twice
    first, second = (read(tmp_path / name / "results.csv") for name in ("whole", "cut"))
    for row in (*first, *second):
        for key in [key for key in row if key == "folder" or CLOCK.match(key)]:
            del row[key]
    assert first == second
    text = (tmp_path / "cut" / "results.csv").read_text()
    (tmp_path / "cut" / "results.csv").unlink()
    study(comparison(tmp_path / "cut"))  # nothing left to run: the same files again
    assert len(ran) == whole
    assert (tmp_path / "cut" / "results.csv").read_text() == text


def test_each_method_has_the_rate_of_its_best_tuning_run(tmp_path, in_process, monkeypatch, study, comparison, read):
    two = {name: METHODS[name] for name in ("simclr", "moco")}
    config = comparison(tmp_path, methods=two, lr=[0.01, 0.001, 0.1], tune_seed=9, equal=["steps"])
    accuracy = {("simclr", 0.01): 0.5, ("simclr", 0.001): 0.5, ("simclr", 0.1): 0.4,
                ("moco", 0.01): 0.2, ("moco", 0.001): 0.1, ("moco", 0.1): 0.3}  # fmt: skip

    def scripted(trials):
        return [{**row, "knn_accuracy": accuracy[row["method"], row["lr"]]} for row in rows(trials)]

    monkeypatch.setattr(running, "rows", scripted)
    study(config)
    chosen = {row["method"]: row["lr"] for row in read(tmp_path / "results.csv") if row["budget"] == STEPS}
    assert chosen == {"simclr": "0.001", "moco": "0.1"}
    assert {row["seed"] for row in read(tmp_path / "results.csv") if row["budget"] == TUNING} == {"9"}
    assert len(read(tmp_path / "summary.csv")) == 2
    assert "Choice of the learning rate" in (tmp_path / "report.html").read_text()


def test_a_trial_of_another_configuration_is_refused(tmp_path, in_process, study, comparison):
    ran, _ = in_process
    one = {"methods": {"simclr": METHODS["simclr"]}, "equal": ["steps"]}
    study(comparison(tmp_path, **one))
    base = {**RUN, "loss": {"temperature": 0.3}}
    with pytest.raises(CompareError, match=r"loss\.temperature: 0\.1 there, 0\.3 now.*choose another out"):
        study(comparison(tmp_path, **one, base=base))
    assert len(ran) == 1


def test_a_method_whose_trials_have_not_begun_may_be_edited(tmp_path, in_process, study, comparison):
    ran, limit = in_process
    limit[0] = 1
    methods = {name: METHODS[name] for name in ("simclr", "moco")}
    with pytest.raises(KeyboardInterrupt):
        study(comparison(tmp_path, methods=methods, equal=["steps"]))
    limit[0] = math.inf
    edited = {"negatives": {"type": "moco", "queue": 32}}
    study(comparison(tmp_path, methods={**methods, "moco": edited}, equal=["steps"]))
    assert len(ran) == 2
    folder = tmp_path / "moco" / "steps" / "lr0.001" / "seed0"
    assert read_config(folder).negatives.queue == 32
    (folder / "summary.json").unlink()  # begun, though not finished
    with pytest.raises(CompareError, match=r"negatives\.queue: 32 there, 16 now"):
        study(comparison(tmp_path, methods=methods, equal=["steps"]))
    moved = {**RUN, "run": {**RUN["run"], "checkpoint_every": 3}}  # of what may differ, the new value is used
    study(comparison(tmp_path, base=moved, methods={**methods, "moco": edited}, equal=["steps"]))
    assert read_config(folder).run.checkpoint_every == 3


def test_encodings_are_those_of_a_seed_that_did_not_diverge(tmp_path, in_process, study, comparison, read, diverge):
    for method, seed in (("simclr", 0), ("moco", 0), ("logq", 0), ("logq", 1)):
        diverge(tmp_path, method, STEPS, 0.001, seed)
    table = study(comparison(tmp_path, seeds=[0, 1]))
    means = {(row["method"], row["budget"]): row for row in read(tmp_path / "summary.csv")}
    assert means["moco", ENCODINGS]["steps"] == "3"  # as many as the reference's other seed made
    for budget in (STEPS, ENCODINGS):
        assert (means["logq", budget]["count"], means["logq", budget]["diverged"]) == ("0", "2")
        assert re.search(rf"{budget} +logq +0.001 +0, 2 diverged", table)
    assert "logq, encodings, lr 0.001, seed 1" in (tmp_path / "report.html").read_text()
    diverge(tmp_path / "none", "simclr", STEPS, 0.001, 0)
    with pytest.raises(CompareError, match="simclr: the reference diverged with every seed"):
        study(comparison(tmp_path / "none", equal=["encodings"]))


def test_a_method_that_diverges_at_every_rate_is_left_out(
    tmp_path, in_process, capsys, study, comparison, read, diverge
):
    two = {name: METHODS[name] for name in ("simclr", "moco")}
    for lr in (0.01, 0.1):
        diverge(tmp_path, "moco", TUNING, lr, 9)
    diverge(tmp_path, "simclr", TUNING, 0.1, 9)
    config = comparison(tmp_path, methods=two, lr=[0.01, 0.1], tune_seed=9)
    table = study(config)
    assert "moco: left out, it diverged at every lr of 0.01, 0.1" in capsys.readouterr().out
    assert {row["budget"] for row in read(tmp_path / "results.csv") if row["method"] == "moco"} == {TUNING}
    lost = [row for row in read(tmp_path / "summary.csv") if row["method"] == "moco"]
    assert [(row["budget"], row["count"], row["diverged"]) for row in lost] == [
        (STEPS, "0", "2"),
        (ENCODINGS, "0", "2"),
    ]
    assert re.search(r"steps +moco +– +0, 2 diverged", table)
    assert "others may be better: simclr 0.01." in table
    assert "one choice of 2" in (tmp_path / "report.html").read_text()
    (tmp_path / "simclr" / TUNING / "lr0.01" / "seed9").rename(tmp_path / "gone")
    diverge(tmp_path, "simclr", TUNING, 0.01, 9)
    with pytest.raises(CompareError, match="every method diverged"):
        study(config)


def test_a_run_that_diverged_is_in_no_mean(tmp_path, in_process, monkeypatch, study, comparison, read, diverge):
    config = comparison(tmp_path, seeds=[0, 1], methods={"simclr": METHODS["simclr"]}, equal=["steps"])
    diverge(tmp_path, "simclr", STEPS, 0.001, 1)
    study(config)
    (mean,) = read(tmp_path / "summary.csv")
    assert (mean["count"], mean["diverged"]) == ("1", "1")
    assert float(mean["steps"]) == 6
    assert "Diverged, and in no mean: simclr, steps, lr 0.001, seed 1" in (tmp_path / "report.html").read_text()
