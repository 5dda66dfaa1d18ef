"""Scores of what mining found, in numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from negbank import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUANTILES = {"min": 0.0, "25%": 0.25, "50%": 0.5, "75%": 0.75, "max": 1.0}
BINS = 60
COLOURS = {"positives": "#2c7a3f", "negatives": "#c4572b", "rejected": "#8a8f98"}


class Column(NamedTuple):
    """Number, mean, standard deviation and quantiles 0, 25, 50, 75, 100 % of finite values; NaN without any."""

    number: int
    mean: float
    std: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray) -> Column:
        """Of the finite ones of values."""
        finite = np.asarray(values, dtype=np.float64)
        finite = finite[np.isfinite(finite)]
        if not len(finite):
            return cls(0, np.nan, np.nan, (np.nan,) * len(QUANTILES))
        quantiles = np.quantile(finite, list(QUANTILES.values()))
        return cls(len(finite), float(finite.mean()), float(finite.std()), tuple(quantiles.tolist()))


class Statistics(NamedTuple):
    """Of positive scores, negative scores, and reference positive − negative for every negative."""

    positive: Column
    negative: Column
    difference: Column

    def table(self) -> list[str]:
        """As lines of text."""
        named = [("mean", [column.mean for column in self]), ("std", [column.std for column in self])]
        named += [(name, [column.quantiles[i] for column in self]) for i, name in enumerate(QUANTILES)]
        return [
            f"{'':8}" + "".join(f"{name:>12}" for name in self._fields),
            f"{'count':8}" + "".join(f"{column.number:>12,}" for column in self),
            *(f"{name:8}" + "".join(f"{value:>12.4f}" for value in values) for name, values in named),
        ]


def histograms(scores: Mapping[str, np.ndarray], limits: Mapping[str, float | None], path: str | Path | None) -> Figure:
    """Densities of kinds of scores (`COLOURS`) on one axis, and thresholds that do not depend on the query."""
    from matplotlib.figure import Figure

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
    for name, value in limits.items():
        if value is not None:
            axes.axvline(value, color="black", linewidth=1, linestyle="--")
            axes.text(value, 0.97, f" {name}", fontsize=8, va="top", transform=axes.get_xaxis_transform())
    axes.set_xlabel("score (similarity to the query)")
    axes.set_ylabel("density")
    axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        kind = Path(path).suffix.removeprefix(".") or "png"
        files.write(Path(path), lambda file: figure.savefig(file, dpi=120, format=kind))
    return figure
