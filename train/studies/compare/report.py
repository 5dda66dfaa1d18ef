"""The table that a comparison prints, and report.html: what was found, the figure, every table, every setting."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from negbank.train.studies import page
from negbank.train.studies.compare.results import HOLDERS, PAIRED, PHASES, judged_by
from negbank.train.studies.compare.trials import TUNING
from negbank.train.studies.page import folded, heading, image, meanings, paragraph, table
from negbank.train.studies.rows import Row, distinct

Format = Callable[[float], str]
SHARE, SIGNED, PLAIN, RATE, COUNT = (f"{{:{spec}}}".format for spec in (".4f", "+.4f", ".4g", "g", ",.0f"))


def _thousands(value: float) -> str:
    return f"{value / 1e3:,.1f} k"


def _megabytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB"


COLUMNS: dict[str, tuple[str, Format, str]] = {
    "knn_accuracy": ("kNN", SHARE, "Accuracy of the weighted kNN of frozen features on held-out images."),
    "mrr@10": (
        "MRR@10",
        SHARE,
        "Mean of 1 / rank of held-out queries' documents in the whole corpus, 0 beyond 10.",
    ),
    "recall@1": ("recall@1", SHARE, "How often a held-out query's document is first in the whole corpus."),
    "train_recall@1": ("recall@1, training", SHARE, "The same for training pairs: how much is learned by heart."),
    PAIRED: (
        "− reference",
        SIGNED,
        "kNN accuracy, or MRR@10, less that of the reference with the same seed and budget, over the seeds that both "
        "have.",
    ),
    "linear_probe_accuracy": ("linear probe", SHARE, "Accuracy of a linear classifier on frozen features."),
    "view_retrieval_at_1": ("retrieval@1", SHARE, "How often a view's nearest is the other view of its row."),
    "global_loss": (
        "global loss",
        PLAIN,
        "The contrastive loss over many rows at the method's own temperature: compare it at equal temperatures only.",
    ),
    "loss": ("last loss", PLAIN, "InfoNCE in the batch at the last step, at the method's own temperature."),
    "steps": ("steps", COUNT, "Optimiser steps."),
    "encodings": (
        "encodings",
        _thousands,
        "Encoder forward passes of single images in training, with or without gradient: views, drawn rows, keys of a "
        "momentum encoder, cached rows, refreshes.",
    ),
    "ms_step": ("ms a step", PLAIN, "Wall time of a step without evaluation. Comparable only with jobs = 1."),
    "extra_bytes": (
        "memory",
        _megabytes,
        "What is kept between steps beyond encoder, optimiser and images: bank, snapshot with its index, momentum "
        "encoder, queue, cache, averages, chains. SimCLR keeps nothing.",
    ),
}
"""Every column's name, format and meaning, in the order of the tables."""
COUNTED = ("steps", "encodings", "extra_bytes")
"""Columns whose deviation is shown only where it is worth a look."""


def text_table(averages: Sequence[Row]) -> str:
    """Mean ± standard deviation over seeds, a line a method and budget."""
    shown = (*judged_by(averages), "global_loss", "steps", "encodings", "ms_step", "extra_bytes")
    lines = [("budget", "method", "lr", "n", *(COLUMNS[name][0] for name in shown))]
    for row in averages:
        entries = (_spread(row, name) for name in shown)
        lines.append((row["budget"], row["method"], _known(row["lr"], RATE), _runs_of(row), *entries))
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(f"{entry:<{width}}" for entry, width in zip(line, widths)).rstrip() for line in lines)


def write(
    folder: Path,
    found: Sequence[Row],
    averages: Sequence[Row],
    gradients: Sequence[Row],
    settings: Mapping[str, Any],
) -> None:
    """report.html of the rows of results.csv, summary.csv and gradient.csv, with the figure that lies in the folder."""
    lost = [
        f"{row['method']}, {row['budget']}, lr {row['lr']:g}, seed {row['seed']}" for row in found if row["diverged"]
    ]
    parts = [
        *(paragraph(line, "answer") for line in answers(averages)),
        *(paragraph(line) for line in edges(found, averages)),
        paragraph(f"Diverged, and in no mean: {'; '.join(lost)}.") if lost else "",
        image(folder / "accuracy.png", "accuracy against encoder forward passes"),
        *(part for budget in distinct(averages, "budget") for part in _budget(averages, budget)),
        *_tuning(found),
        *_gradients(gradients),
        heading("Where a step's time goes, in ms"),
        _split(averages, "ms_step", [f"ms_{phase}" for phase in PHASES], PHASES, PLAIN),
        heading("Memory beyond encoder, optimiser and images"),
        _split(averages, "extra_bytes", [f"bytes_{holder}" for holder in HOLDERS], HOLDERS, _megabytes),
        heading("Every run"),
        _runs(found),
        meanings({key: (title, text) for key, (title, _, text) in COLUMNS.items()}, "the CSV files"),
        page.settings(settings),
    ]
    page.write(folder / "report.html", "Comparison of methods", parts)


def answers(averages: Sequence[Row]) -> list[str]:
    """The method of the highest mean accuracies of each budget, in a sentence, with how far the next one is."""
    lines = []
    for budget in distinct(averages, "budget"):
        here = [row for row in averages if row["budget"] == budget and row["count"]]
        parts = []
        for name in judged_by(averages):
            order = sorted((row for row in here if row[name] >= 0), key=lambda row: -row[name])
            held = ", ".join(f"{row['method']} {_spread(row, name)}" for row in order[:2])
            parts += [f"{COLUMNS[name][0]} {held}"] if order else []
        if parts:
            lines.append(f"At equal {budget}, the two highest of {len(here)} means ± sd: {'; '.join(parts)}.")
    return lines


def edges(found: Sequence[Row], averages: Sequence[Row]) -> list[str]:
    """A line that names the methods whose learning rate is the least or the greatest of those tried, if there are."""
    rates = distinct([row for row in found if row["budget"] == TUNING], "lr")
    at = {row["method"]: row["lr"] for row in averages if len(rates) > 1 and row["lr"] in (min(rates), max(rates))}
    named = ", ".join(f"{method} {lr:g}" for method, lr in at.items())
    return [f"At the edge of the learning rates tried, so that others may be better: {named}."] if at else []


def _budget(averages: Sequence[Row], budget: str) -> list[str]:
    here = [row for row in averages if row["budget"] == budget]
    body = [
        (row["method"], _known(row["lr"], RATE), _runs_of(row), *(_spread(row, name) for name in _columns(averages)))
        for row in here
    ]
    heads = ("method", "lr", "runs", *(COLUMNS[name][0] for name in _columns(averages)))
    return [heading(f"At equal {budget}"), paragraph("Mean ± standard deviation over seeds."), table(heads, body)]


def _columns(found: Sequence[Row]) -> list[str]:
    """The columns that some of the rows know."""
    return [name for name in COLUMNS if any(not math.isnan(row.get(name, math.nan)) for row in found)]


def _tuning(found: Sequence[Row]) -> list[str]:
    """The first measure of `judged_by` of every tuning run, a column a learning rate."""
    here = [row for row in found if row["budget"] == TUNING]
    if not here:
        return []
    rates = sorted(set(distinct(here, "lr")))
    judge = judged_by(found)[0]
    at = {(row["method"], row["lr"]): row[judge] for row in here}
    body = [
        (method, *(_known(at.get((method, lr), math.nan), SHARE) for lr in rates))
        for method in distinct(here, "method")
    ]
    return [
        heading("Choice of the learning rate"),
        paragraph(
            f"{COLUMNS[judge][0]} at equal steps with seed {here[0]['seed']}, which is in no other table. Each method "
            f"has the rate of its highest. The same held-out rows judge the methods in the tables above: the choice "
            f"flatters each of them alike, by one choice of {len(rates)}."
        ),
        table(("method", *(f"lr {lr:g}" for lr in rates)), body),
    ]


def _gradients(measured: Sequence[Row]) -> list[str]:
    """A line a method and step."""
    if not measured:
        return []
    names = [name for name in measured[0] if name not in ("method", "seed", "step")]
    body = [(r["method"], str(r["step"]), *(_known(r[name], PLAIN) for name in names)) for r in measured]
    return [
        heading("Error of the gradient"),
        paragraph(
            "The gradient of one batch against the exact one of the global loss at the method's own temperature, over "
            f"the encoder's parameters and in units of the exact one's norm; first seed, {measured[0]['seed']}. A bias "
            "below the noise is not told from none. A method that descends another loss has a bias for that."
        ),
        table(("method", "step", *names), body),
    ]


def _split(averages: Sequence[Row], whole: str, keys: Sequence[str], names: Sequence[str], form: Format) -> str:
    body = [(row["method"], row["budget"], *(_known(row[key], form) for key in (whole, *keys))) for row in averages]
    return table(("method", "budget", "all", *(name.replace("_", " ") for name in names)), body)


def _runs(found: Sequence[Row]) -> str:
    columns = {name: COLUMNS[name] for name in _columns(found) if name != PAIRED}
    heads = ("method", "budget", "lr", "seed", *(title for title, _, _ in columns.values()))
    body = [
        (row["method"], row["budget"], f"{row['lr']:g}", str(row["seed"]),
         *(_known(row[name], form) for name, (_, form, _) in columns.items()))
        for row in found
    ]  # fmt: skip
    return folded(f"{len(body)} runs", [table(heads, body)])


def _spread(row: Row, name: str) -> str:
    """Mean ± standard deviation; the mean alone of one run, and of counts where all agree within a thousandth."""
    form, spread = COLUMNS[name][1], row[f"{name}_sd"]
    mean = _known(row[name], form)
    if math.isnan(spread) or (name in COUNTED and spread <= abs(row[name]) / 1000):
        return mean
    return f"{mean} ± {form(spread).removeprefix('+')}"


def _runs_of(row: Row) -> str:
    """How many runs are in a mean, and how many are in none."""
    return f"{row['count']}, {row['diverged']} diverged" if row["diverged"] else str(row["count"])


def _known(value: float, form: Format) -> str:
    return "–" if math.isnan(value) else form(value)
