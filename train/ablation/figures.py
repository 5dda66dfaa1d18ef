"""The figures of an ablation: how fast total variation falls, and how bias grows with staleness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from negbank.train.report import save

FLOOR = 1e-6
"""Total variation and bias are drawn down to here."""
PANELS = 6
"""Levels of staleness drawn side by side, at most: the first, the last, and others evenly between them."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")  # Okabe & Ito 2008
STYLES = {"bank": "-", "fresh": "--"}
MARKERS = "osD^vPX*"

Rows = Sequence[dict[str, Any]]


def distinct(rows: Rows, name: str) -> list[Any]:
    """The values of a column in the order of their first row."""
    return list(dict.fromkeys(row[name] for row in rows))


def drawn_levels(rows: Rows) -> list[str]:
    """The levels that get a panel."""
    levels = distinct(rows, "level")
    if len(levels) <= PANELS:
        return levels
    return [levels[round(i * (len(levels) - 1) / (PANELS - 1))] for i in range(PANELS)]


def draw_tv(rows: Rows, path: Path) -> None:
    """Total variation against draws, and below against milliseconds; a panel a level, a row of panels a temperature."""
    levels, temperatures = drawn_levels(rows), distinct(rows, "temperature")
    figure, panels = _figure(2 * len(temperatures), len(levels))
    for i, temperature in enumerate(temperatures):
        for k, level in enumerate(levels):
            here = [row for row in rows if row["temperature"] == temperature and row["level"] == level]
            for axes, x, name in (
                (panels[2 * i][k], "budget", "draws R"),
                (panels[2 * i + 1][k], "ms", "ms an anchor"),
            ):
                _lines(axes, here, x, "tv", rows)
                axes.set_xscale("log", base=2 if x == "budget" else 10)
                axes.set_xlabel(name)
                axes.set_title(f"{level}: staleness {here[0]['staleness']:.3g}, τ = {temperature:g}", fontsize=9)
                if k == 0:
                    axes.set_ylabel("total variation to π")
    _finish(figure, panels, rows, path)


def draw_bias(rows: Rows, path: Path) -> None:
    """Relative bias of the gradient's direction against staleness, at the middle and at the largest budget."""
    budgets, temperatures = distinct(rows, "budget"), distinct(rows, "temperature")
    shown = list(dict.fromkeys((budgets[len(budgets) // 2], budgets[-1])))
    figure, panels = _figure(len(temperatures), len(shown), width=5.0, height=3.8)
    for i, temperature in enumerate(temperatures):
        for k, budget in enumerate(shown):
            axes = panels[i][k]
            here = [row for row in rows if row["temperature"] == temperature and row["budget"] == budget]
            _lines(axes, sorted(here, key=lambda row: row["staleness"]), "staleness", "bias", rows)
            axes.set_xlabel("staleness: 1 − mean cosine of bank and truth")
            axes.set_title(f"after R = {budget} proposals, τ = {temperature:g}", fontsize=9)
            if k == 0:
                axes.set_ylabel("bias |m − μ| / |μ|")
    _finish(figure, panels, rows, path)


def _figure(rows: int, columns: int, *, width: float = 3.4, height: float = 2.9) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(7.0, width * columns), height * rows + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, sharey="row")


def _lines(axes: Any, rows: Rows, x: str, y: str, every: Rows) -> None:
    """One line a proposal and query, with its interval; the same look in every panel of `every`."""
    for i, proposal in enumerate(distinct(every, "proposal")):
        for query in distinct(every, "query"):
            points = [row for row in rows if (row["proposal"], row["query"]) == (proposal, query) and row[y] == row[y]]
            at, low, high = ([row[name] for row in points] for name in (x, f"{y}_low", f"{y}_high"))
            middle = [max(row[y], FLOOR) for row in points]
            axes.plot(
                at, middle, STYLES[query], color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)],
                markersize=3.5, linewidth=1.3, label=proposal if len(distinct(every, "query")) == 1 else
                f"{proposal}, {query} query",
            )  # fmt: skip
            axes.fill_between(
                at, [max(v, FLOOR) for v in low], [max(v, FLOOR) for v in high], color=COLOURS[i % len(COLOURS)],
                alpha=0.15, linewidth=0,
            )  # fmt: skip


def _finish(figure: Any, panels: Any, rows: Rows, path: Path) -> None:
    for axes in panels.flat:
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(FLOOR, axes.get_ylim()[0]))
        axes.grid(alpha=0.3, which="both", linewidth=0.4)
        axes.tick_params(labelsize=8)
    legend_below(figure, panels[0][0], 4)
    save(figure, path)


def legend_below(figure: Any, axes: Any, columns: int) -> None:
    """One legend for a figure whose panels share the lines of `axes`, in at most so many columns."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), fontsize=8, frameon=False
    )
