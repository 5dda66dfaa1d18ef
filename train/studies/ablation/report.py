"""report.html: the answer first, then settings, figures, tables, and how to read them. One file, nothing loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from negbank.train.studies import page
from negbank.train.studies.ablation.answer import Answer, Winner
from negbank.train.studies.ablation.figures import drawn_levels
from negbank.train.studies.page import Html, folded, heading, html, image, meanings, paragraph, table
from negbank.train.studies.rows import distinct

COLUMNS = {
    "tv": (
        "total variation",
        "½ Σ |p_R − π| of a chain's law after R proposals from a uniform start. Exact. Less is better.",
    ),
    "bias": (
        "bias",
        "|m_R − μ| / |μ|: how far the expected direction of the negatives after R proposals is from that of the exact "
        "gradient. Exact. Less is better.",
    ),
    "variance": (
        "variance",
        "E|P z − m_R|² / |μ|² of one kept state, in units of the exact direction's square. Exact.",
    ),
    "ess": ("ESS a draw", "1 / Σ π²/q: what one draw is worth against one from π itself, 1 at most. More is better."),
    "ess_per_ms": ("ESS a ms", "R · ESS / ms: effective draws in a millisecond of drawing. The encoder is not in it."),
    "ess_per_encoding": (
        "ESS an encoding",
        "R · ESS / encodings: effective draws a forward pass of the encoder. What counts where encoding is the cost.",
    ),
    "sup": ("sup π/q", "The rate: total variation is at most (1 − 1/sup)^R. Less is better."),
    "acceptance": (
        "acceptance",
        "Share of proposals that a chain accepts at stationarity. Not a goal: it can rise while mixing worsens.",
    ),
    "encodings": (
        "encodings",
        "Expected distinct rows among R draws: forward passes of the encoder for one anchor by itself.",
    ),
    "ms": ("ms", "Median wall time an anchor of one call with R draws and their density: of drawing, not of encoding."),
}
"""Every measure's name and meaning, in the order of the tables."""


def write(
    folder: Path,
    found: Answer,
    rows: Sequence[dict[str, Any]],
    settings: Mapping[str, Any],
    *,
    scale: str,
) -> None:
    """report.html of averaged rows, with the figures that lie in the folder.

    Args:
        folder: of tv.png and bias.png.
        found: the answer.
        rows: as in ablation.csv.
        settings: the resolved configuration.
        scale: one sentence on how much was measured, and how it was timed.
    """
    levels = distinct(rows, "level")
    more = "" if drawn_levels(rows) == levels else f" {len(drawn_levels(rows))} of {len(levels)} levels are drawn."
    parts = [
        paragraph(found, "answer"),
        _settings_table(found) if len(found.by_setting) > 1 else "",
        paragraph(scale),
        page.settings(settings),
        heading("Figures"),
        paragraph(f"Bands: 95 % intervals.{more}"),
        image(folder / "tv.png", "total variation"),
        image(folder / "bias.png", "bias against staleness"),
        heading("Tables"),
        paragraph("Means over anchors; in brackets the 95 % interval. In bold the most effective draws a ms."),
        *_tables(found, rows),
        meanings(COLUMNS, "ablation.csv"),
        paragraph(
            "π is the softmax over all allowed rows of the truth, q the proposal bound to the stale bank. All but the "
            "milliseconds is exact for each anchor; those were measured here, beside whatever else the machine did. "
            "Intervals: 95 %, percentile bootstrap over anchors; of ms, that of the median over timed calls. Drawing "
            "is not the whole cost: every distinct row has to pass the encoder, which may cost far more."
        ),
    ]
    page.write(folder / "report.html", f"Ablation: {found.what}", parts)


def _settings_table(found: Answer) -> str:
    least = f"least TV at R = {found.budget}"
    head = ("level", "τ", "query", "most effective draws per ms", "most effective draws per encoding", least, "TV")
    body = [
        (level, f"{temperature:g}", query, _held(best.per_ms), _held(best.per_encoding), best.least,
         _number(best.tv))
        for (temperature, level, query), best in found.by_setting.items()
    ]  # fmt: skip
    return table(head, body)


def _held(winner: Winner) -> Html:
    if winner.times is None:
        return html(winner.proposal)
    times, low, high = (_number(each) for each in winner.times)
    return Html(f"{html(winner.proposal)}: {times}× {html(winner.other)} <small>({low}–{high})</small>")


def _tables(found: Answer, rows: Sequence[dict[str, Any]]) -> list[str]:
    """One folded table a setting: all measures at the largest budget, and total variation and bias at the others."""
    parts: list[str] = []
    for (temperature, level, query), best in found.by_setting.items():
        here = [r for r in rows if (r["temperature"], r["level"], r["query"]) == (temperature, level, query)]
        last = [r for r in here if r["budget"] == found.budget]
        bold = best.per_ms.proposal
        names = {r["proposal"]: Html(f"<b>{html(bold)}</b>") if r["proposal"] == bold else r["proposal"] for r in last}
        whole = table(
            ("proposal", *(name for name, _ in COLUMNS.values())),
            [(names[r["proposal"]], *(_interval(r, key) for key in COLUMNS)) for r in last],
        )
        budgets = distinct(here, "budget")
        by_budget = [
            table(
                (COLUMNS[key][0], *(f"R = {b}" for b in budgets)),
                [(names[name], *(_number(r[key]) for r in here if r["proposal"] == name)) for name in names],
            )
            for key in ("tv", "bias", "ms")
        ]
        title = f"{level}, staleness {last[0]['staleness']:.3g}, τ = {temperature:g}, {query} query"
        shown = [paragraph(f"At R = {found.budget}:"), whole, paragraph("At every R:"), *by_budget]
        parts.append(folded(title, shown, opened=not parts))
    return parts


def _interval(row: Mapping[str, Any], name: str) -> Html:
    low, high = _number(row[f"{name}_low"]), _number(row[f"{name}_high"])
    return Html(f"{_number(row[name])} <small>({low}–{high})</small>")


def _number(value: float) -> str:
    """Three digits; what is below 1e-6 of total variation or bias is rounding."""
    return "0" if abs(value) < 1e-9 else f"{value:.3g}"
