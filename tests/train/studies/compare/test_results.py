"""Means, deviations and the lines that are printed of them."""

from __future__ import annotations

import math

import pytest

from negbank.train.studies.compare.report import edges, text_table
from negbank.train.studies.compare.results import ACCURACIES, MEASURES, RANKINGS, judged_by, summarise
from negbank.train.studies.compare.trials import ENCODINGS, STEPS, TUNING

ROW = {"budget": STEPS, "method": "a", "lr": 0.1, "seed": 0, "diverged": False, **dict.fromkeys(MEASURES, math.nan)}


def test_means_and_deviations():
    (mean,) = summarise([{**ROW, "steps": 2}, {**ROW, "steps": 4}, {**ROW, "steps": 9}, {**ROW, "diverged": True},
                         {**ROW, "budget": TUNING}], "a")  # fmt: skip
    assert (mean["count"], mean["diverged"], mean["steps"]) == (3, 1, 5)
    assert mean["steps_sd"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert math.isnan(mean["loss"])


def test_differences_to_the_reference_are_of_equal_seeds():
    accuracy = {"a": {0: 0.5, 1: 0.9, 3: 0.4}, "b": {0: 0.6, 1: 0.7, 2: 0.1}}
    found = [
        {**ROW, "method": m, "seed": s, "knn_accuracy": v} for m, each in accuracy.items() for s, v in each.items()
    ]
    found += [{**row, "budget": ENCODINGS, "knn_accuracy": 0.0} for row in found]
    a, b, *_ = summarise(found, "a")
    assert math.isnan(a["over_reference"])
    assert b["over_reference"] == pytest.approx((0.1 - 0.2) / 2)
    assert b["over_reference_sd"] == pytest.approx(0.3 / math.sqrt(2))


def test_retrieval_is_judged_by_its_ranking():
    found = [
        {**ROW, "method": method, "seed": seed, "mrr@10": 0.3 + 0.1 * seed + gain, "recall@1": 0.2}
        for seed in (0, 1)
        for method, gain in (("a", 0.0), ("b", 0.05))
    ]
    assert judged_by(found) == RANKINGS
    assert judged_by([ROW]) == ACCURACIES
    averages = summarise(found, "a")
    assert averages[1]["over_reference"] == pytest.approx(0.05)
    head, *lines = text_table(averages).splitlines()
    assert "MRR@10" in head
    assert "kNN" not in head
    assert "0.4000 ± 0.0707" in lines[1]


def test_the_table_says_what_diverged_and_how_far_runs_are_apart():
    (mean,) = summarise([{**ROW, "knn_accuracy": 0.5, "steps": 10}, {**ROW, "knn_accuracy": 0.5002, "steps": 10},
                         {**ROW, "diverged": True}], "a")  # fmt: skip
    _, line = text_table([mean]).splitlines()
    assert "2, 1 diverged" in line
    assert "0.5001 ± 0.0001" in line
    assert "10 ±" not in line


def test_a_rate_at_the_edge_of_those_tried_is_named():
    tried = [{**ROW, "budget": TUNING, "lr": lr} for lr in (0.1, 0.3, 0.2)]
    averages = [{"method": m, "lr": lr} for m, lr in (("low", 0.1), ("inner", 0.2), ("high", 0.3), ("low", 0.1))]
    (line,) = edges(tried, averages)
    assert line.endswith("better: low 0.1, high 0.3.")
    assert edges(tried, averages[1:2]) == edges(tried[:1], averages) == []
