"""A mining result at a glance: a table of scores and of what each filter removed, and a picture of the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from negbank.mining.rules import REASONS, verdicts
from negbank.mining.select import CHUNK, Kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from negbank.mining.result import MiningResult

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
ARGUMENT = {
    "near_positive": "dedupe: like a positive",
    "near_negative": "dedupe: like a chosen negative",
}
BINS = 60
COLOURS = {"positives": "#2c7a3f", "negatives": "#c4572b", "rejected": "#8a8f98"}


class Column(NamedTuple):
    """Number, mean, standard deviation and quantiles 0, 25, 50, 75, 100 % of finite values; NaN without any."""

    number: int
    mean: float
    std: float
    quantiles: tuple[float, ...]


class Statistics(NamedTuple):
    """Of positive scores, negative scores, and reference positive − negative for every negative."""

    positive: Column
    negative: Column
    difference: Column


def statistics(positive: np.ndarray, negative: np.ndarray, difference: np.ndarray) -> Statistics:
    """The three columns of the table."""
    return Statistics(_column(positive), _column(negative), _column(difference))


def table(result: MiningResult) -> str:
    """The table as text."""
    columns = result.statistics()
    lines = [f"{'':8}{'positive':>12}{'negative':>12}{'difference':>12}"]
    lines.append(f"{'count':8}" + "".join(f"{column.number:>12,}" for column in columns))
    named = [("mean", [c.mean for c in columns]), ("std", [c.std for c in columns])]
    named += [(name, [c.quantiles[i] for c in columns]) for i, name in enumerate(("min", "25%", "50%", "75%", "max"))]
    lines += [f"{name:8}" + "".join(f"{value:>12.4f}" for value in values) for name, values in named]
    counts = np.diff(result.candidate_indptr)[result.query]
    examined = int(np.minimum(counts, result.rules.range_max).sum())
    rows = "pairs of a query and a positive" if result.rules.positive_reference == "each" else "queries"
    lines.append(f"{examined:,} candidates of {len(result):,} {rows}; rejected:")
    for reason, count in result.rejects.items():
        if count:
            value = getattr(result.rules, reason, None)
            name = ARGUMENT.get(reason, f"{reason}={value}")
            lines.append(f"  {count:>10,} ({count / examined:.2%}) by {name}")
    if not any(result.rejects.values()):
        lines.append("  none")
    missing = result.rules.num_negatives * len(result) - int(result.indptr[-1])
    if missing:
        lines.append(
            f"{result.short:,} of {len(result):,} rows have fewer than num_negatives={result.rules.num_negatives}: "
            f"{missing:,} negatives missing ({result.rules.shortfall}); raise range_max or loosen the filters"
        )
    if result.random is not None:
        lines.append(f"{int(result.random.sum()):,} negatives are random padding")
    searched = "exact search" if result.recall is None else f"index recall {result.recall:.4f} on a sample of queries"
    return "\n".join([*lines, searched])


def histograms(result: MiningResult, kept: Kept, path: str | Path | None) -> Figure:
    """Densities of the three kinds of scores on one axis, with the thresholds that do not depend on the query."""
    from matplotlib.figure import Figure

    rejected = _rejected(result, kept)
    scores = {"positives": result.positive_scores, "negatives": result.scores, "rejected": rejected}
    scores = {name: np.asarray(values)[np.isfinite(values)] for name, values in scores.items()}
    everything = np.concatenate(list(scores.values()))
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    if len(everything):
        low, high = float(everything.min()), float(everything.max())
        edges = np.linspace(low - 1e-3, high + 1e-3, BINS + 1)
        for name, values in scores.items():
            if len(values):
                filled = name != "rejected"
                axes.hist(
                    values, bins=list(edges), density=True, color=COLOURS[name], label=f"{name} ({len(values):,})",
                    histtype="stepfilled" if filled else "step", alpha=0.55 if filled else 1.0, linewidth=1.5,
                )  # fmt: skip
        axes.legend(frameon=False)
    for name in ("min_score", "max_score"):
        value = getattr(result.rules, name)
        if value is not None:
            axes.axvline(value, color="black", linewidth=1, linestyle="--")
            axes.text(value, 0.97, f" {name}", fontsize=8, va="top", transform=axes.get_xaxis_transform())
    axes.set_xlabel("score (similarity to the query)")
    axes.set_ylabel("density")
    axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _rejected(result: MiningResult, kept: Kept) -> np.ndarray:
    """Scores of the candidates that a filter rejected, ranks aside."""
    query, _ = kept.queries(result.rules.positive_reference)
    reference = result.reference()
    found = [np.zeros(0, dtype=np.float32)]
    for at in range(0, len(query), CHUNK):
        window, _ = kept.window(query[at : at + CHUNK])
        verdict = verdicts(window, reference[at : at + CHUNK], result.rules)
        found.append(window.scores[verdict > 1 + REASONS.index("range_min")])
    return np.concatenate(found)


def _column(values: np.ndarray) -> Column:
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return Column(0, np.nan, np.nan, (np.nan,) * len(QUANTILES))
    return Column(
        len(finite), float(finite.mean()), float(finite.std()), tuple(np.quantile(finite, QUANTILES).tolist())
    )
