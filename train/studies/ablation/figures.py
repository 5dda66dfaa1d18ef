"""The figures of an ablation: how fast total variation falls, and how bias grows with staleness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negbank.train.report import save
from negbank.train.studies.figures import legend_below, look, panels
from negbank.train.studies.rows import Row, distinct

FLOOR = 1e-6
"""Total variation and bias are drawn down to here."""
PANELS = 6
"""Levels of staleness drawn side by side, at most: the first, the last, and others evenly between them."""
STYLES = {"bank": "-", "fresh": "--"}
Rows = Sequence[Row]


def drawn_levels(rows: Rows) -> list[str]:
    """The levels that get a panel."""
    levels = distinct(rows, "level")
    if len(levels) <= PANELS:
        return levels
    return [levels[round(i * (len(levels) - 1) / (PANELS - 1))] for i in range(PANELS)]


def draw_tv(rows: Rows, path: Path) -> None:
    """Total variation against draws, and below against milliseconds; a panel a level, a row of panels a temperature."""
    levels, temperatures = drawn_levels(rows), distinct(rows, "temperature")
    figure, axes_of = _panels(2 * len(temperatures), len(levels), 3.4, 2.9)
    for i, temperature in enumerate(temperatures):
        for k, level in enumerate(levels):
            here = [row for row in rows if row["temperature"] == temperature and row["level"] == level]
            title = f"{level}: staleness {here[0]['staleness']:.3g}, τ = {temperature:g}"
            for below, x, name, base in ((0, "budget", "draws R", 2), (1, "ms", "ms an anchor", 10)):
                axes = axes_of[2 * i + below][k]
                _lines(axes, here, x, "tv", rows)
                axes.set_xscale("log", base=base)
                axes.set_xlabel(name)
                axes.set_title(title, fontsize=9)
                if k == 0:
                    axes.set_ylabel("total variation to π")
    _finish(figure, axes_of, path)


def draw_bias(rows: Rows, path: Path) -> None:
    """Relative bias of the gradient's direction against staleness, at the middle and at the largest budget."""
    budgets, temperatures = distinct(rows, "budget"), distinct(rows, "temperature")
    shown = list(dict.fromkeys((budgets[len(budgets) // 2], budgets[-1])))
    figure, axes_of = _panels(len(temperatures), len(shown), 5.0, 3.8)
    for i, temperature in enumerate(temperatures):
        for k, budget in enumerate(shown):
            axes = axes_of[i][k]
            here = [row for row in rows if row["temperature"] == temperature and row["budget"] == budget]
            _lines(axes, sorted(here, key=lambda row: row["staleness"]), "staleness", "bias", rows)
            axes.set_xlabel("staleness: 1 − mean cosine of bank and truth")
            axes.set_title(f"after R = {budget} proposals, τ = {temperature:g}", fontsize=9)
            if k == 0:
                axes.set_ylabel("bias |m − μ| / |μ|")
    _finish(figure, axes_of, path)


def _panels(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    return panels(rows, columns, (max(7.0, width * columns), height * rows + 0.8), sharey="row")


def _lines(axes: Any, rows: Rows, x: str, y: str, every: Rows) -> None:
    """One line a proposal and query, with its interval; the same look in every panel of `every`."""
    queries = distinct(every, "query")
    for i, proposal in enumerate(distinct(every, "proposal")):
        for query in queries:
            points = [row for row in rows if (row["proposal"], row["query"]) == (proposal, query) and row[y] == row[y]]
            at = [row[x] for row in points]
            middle, low, high = ([max(row[k], FLOOR) for row in points] for k in (y, f"{y}_low", f"{y}_high"))
            name = proposal if len(queries) == 1 else f"{proposal}, {query} query"
            axes.plot(at, middle, label=name, linestyle=STYLES[query], markersize=3.5, **look(i))
            axes.fill_between(at, low, high, color=look(i)["color"], alpha=0.15, linewidth=0)


def _finish(figure: Any, axes_of: Any, path: Path) -> None:
    for axes in axes_of.flat:
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(FLOOR, axes.get_ylim()[0]))
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
        axes.tick_params(labelsize=8)
    legend_below(figure, axes_of[0][0], 4)
    save(figure, path)
