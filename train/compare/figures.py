"""accuracy.png: kNN accuracy against encoder forward passes, and each method's final accuracies with their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negbank.train.ablation.figures import COLOURS, MARKERS, distinct, legend_below
from negbank.train.compare.cells import Cell
from negbank.train.compare.results import ACCURACIES, Row, evaluations
from negbank.train.report import NAMES, save

STYLES = ("-", "--")


def draw_accuracy(cells: Sequence[Cell], averages: Sequence[Row], path: Path) -> None:
    """A row of panels a budget: how the runs went, mean over seeds, and final accuracies ± deviation."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    budgets, methods = distinct(averages, "budget"), distinct(averages, "method")
    figure = Figure(figsize=(14, 4.2 * len(budgets) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(budgets), 3, squeeze=False)
    for (course, *finals), budget in zip(panels, budgets):
        for k, method in enumerate(methods):
            here = [cell for cell in cells if (cell.method, cell.budget) == (method, budget)]
            _course(course, here, method, _look(k))
            for row in (row for row in averages if (row["method"], row["budget"]) == (method, budget)):
                for axes, name in zip(finals, ACCURACIES):
                    _final(axes, k, row, name, _look(k))
        course.set_title(f"equal {budget}: mean over seeds", fontsize=9)
        course.set_xlabel("encoder forward passes")
        course.set_ylabel(_title(ACCURACIES[0]))
        for axes, name in zip(finals, ACCURACIES):
            axes.set_title(f"equal {budget}, at the end: mean ± sd over seeds", fontsize=9)
            axes.set_xlabel(_title(name))
            axes.set_yticks(range(len(methods)), methods)
            axes.set_ylim(len(methods) - 0.5, -0.5)
        for axes in (course, *finals):
            axes.grid(alpha=0.3, linewidth=0.4)
            axes.tick_params(labelsize=8)
    legend_below(figure, panels[0][0], 5)
    save(figure, path, dpi=110)


def _look(k: int) -> dict[str, Any]:
    style = STYLES[k // len(COLOURS) % len(STYLES)]
    look = {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)], "linestyle": style}
    return {**look, "markersize": 4, "linewidth": 1.3}


def _course(axes: Any, cells: Sequence[Cell], method: str, look: dict[str, Any]) -> None:
    """The mean over seeds of what was measured at the same step, from the untrained encoder on."""
    by_step: dict[int, list[Row]] = {}
    for cell in cells:
        for row in evaluations(cell):
            by_step.setdefault(row["step"], []).append(row)
    shared = [found for _, found in sorted(by_step.items()) if len(found) == max(map(len, by_step.values()))]
    means = [
        [statistics.fmean(row[name] for row in found) for found in shared] for name in ("encodings", ACCURACIES[0])
    ]
    axes.plot(*means, label=method, **look)


def _final(axes: Any, at: int, row: Row, name: str, look: dict[str, Any]) -> None:
    spread = row[f"{name}_sd"]
    error = None if math.isnan(spread) else spread
    axes.errorbar([row[name]], [at], xerr=error, capsize=3, **{**look, "linestyle": "none"})


def _title(name: str) -> str:
    return NAMES[name].removesuffix(", trained encoder")
