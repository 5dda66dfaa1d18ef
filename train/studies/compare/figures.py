"""accuracy.png: what methods are judged by against encoder forward passes, and at the end, with its spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negbank.train.report import NAMES, save
from negbank.train.studies.compare.results import evaluations, judged_by
from negbank.train.studies.compare.trials import Trial
from negbank.train.studies.figures import COLOURS, legend_below, look, panels
from negbank.train.studies.rows import Row, distinct

STYLES = ("-", "--")


def draw_accuracy(trials: Sequence[Trial], averages: Sequence[Row], path: Path) -> None:
    """A row of panels a budget: how the runs went, mean over seeds, and final accuracies ± deviation."""
    budgets, methods, judges = distinct(averages, "budget"), distinct(averages, "method"), judged_by(averages)
    figure, axes_of = panels(len(budgets), 3, (14, 4.2 * len(budgets) + 0.8))
    for (course, *finals), budget in zip(axes_of, budgets):
        for k, method in enumerate(methods):
            style = {**look(k), "linestyle": STYLES[k // len(COLOURS) % len(STYLES)], "markersize": 4}
            here = [trial for trial in trials if (trial.method, trial.budget) == (method, budget)]
            _course(course, here, method, judges[0], style)
            for row in (row for row in averages if (row["method"], row["budget"]) == (method, budget)):
                for axes, name in zip(finals, judges):
                    _final(axes, k, row, name, style)
        course.set_title(f"equal {budget}: mean over seeds", fontsize=9)
        course.set_xlabel("encoder forward passes")
        course.set_ylabel(_title(judges[0]))
        for axes, name in zip(finals, judges):
            axes.set_title(f"equal {budget}, at the end: mean ± sd over seeds", fontsize=9)
            axes.set_xlabel(_title(name))
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(len(methods) - 0.5, -0.5)
        for axes in (course, *finals):
            axes.grid(alpha=0.3, linewidth=0.4)
            axes.tick_params(labelsize=8)
    legend_below(figure, axes_of[0][0], 5)
    save(figure, path, dpi=110)


def _course(axes: Any, trials: Sequence[Trial], method: str, judge: str, style: dict[str, Any]) -> None:
    """The mean over seeds of what was measured at the same step, from the untrained encoder on."""
    by_step: dict[int, list[Row]] = {}
    for trial in trials:
        for row in (row for row in evaluations(trial) if judge in row):
            by_step.setdefault(row["step"], []).append(row)
    shared = [found for _, found in sorted(by_step.items()) if len(found) == max(map(len, by_step.values()))]
    means = [[statistics.fmean(row[name] for row in found) for found in shared] for name in ("encodings", judge)]
    axes.plot(*means, label=method, **style)


def _final(axes: Any, at: int, row: Row, name: str, style: dict[str, Any]) -> None:
    spread = row[f"{name}_sd"]
    error = None if math.isnan(spread) else spread
    axes.errorbar([row[name]], [at], xerr=error, capsize=3, **{**style, "linestyle": "none"})


def _title(name: str) -> str:
    return NAMES[name].removesuffix(", trained encoder")
