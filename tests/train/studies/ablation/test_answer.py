"""Who wins, and by how much."""

from __future__ import annotations

import pytest
import torch

from negbank.train.studies.ablation.answer import answer


def test_the_answer_names_who_wins_and_what_is_no_difference(made):
    few, many = torch.full((50,), 0.01), torch.full((50,), 0.48)
    found = answer([made("Uniform", few), made("Nearest k=4", many, ms=4.0), made("Slow", many + 0.1, ms=400.0)], "x")
    assert str(found).startswith("For x: Nearest k=4: 12× the effective draws per ms of Uniform (12–12), of drawing")
    assert "Slow: 58× the effective draws per encoder forward pass of Uniform (58–58)" in str(found)
    assert "Least total variation after 64 proposals: Slow (0.42)." in str(found)
    found = answer([made("Uniform", few), made("Nearest k=4", few, ms=0.99, spread=1.5)], "x")
    assert found.overall.per_ms.proposal == "Nearest k=4"
    assert "no clear difference" in str(found)
    found = answer([made("A", few), made("B", many)], "x")
    assert "B: 48× the effective draws per ms of A" in str(found)
    assert str(answer([made("A", many)], "x")).startswith("For x: A: 30.7 effective draws per ms, of drawing alone.")


def test_the_answer_over_settings_is_the_geometric_mean(made):
    one, two = torch.full((9,), 0.1), torch.full((9,), 0.4)
    cells = [made("Uniform", one, level="a"), made("P", two, level="a"), made("Uniform", one, level="b")]
    found = answer([*cells, made("P", two, level="b", ms=4.0)], "x")
    assert found.overall.per_ms.times.mean == pytest.approx(2.0)
    assert {s[1]: b.per_ms.times.mean for s, b in found.by_setting.items()} == pytest.approx({"a": 4.0, "b": 1.0})
    assert "geometric means of 2 settings" in str(found)
