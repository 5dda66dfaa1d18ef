"""Means over anchors with 95 % intervals: the percentile bootstrap over anchors (Efron & Tibshirani 1993, ch. 13).

Anchors are drawn anew with replacement, the same ones for every cell of as many anchors, so that ratios of cells are
paired. An anchor for which a measure is not defined is left out of its mean. The interval says how far the mean over
these anchors may be from that over all rows; of a single anchor nothing but the clock is uncertain. That of ms is of
the median over timed calls, and that of ess_per_ms has both: ms varies between resamples as a log-normal with 95 % of
its mass between ms_low and ms_high.
"""

from __future__ import annotations

import csv
import functools
import io
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from negbank.train.ablation.measure import MEASURES, Cell, Key
from negbank.train.checkpoint import replace
from torch import Tensor

RESAMPLES = 1000
LEVELS = torch.tensor([0.025, 0.975], dtype=torch.float64)


class Average(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def average(cell: Cell, name: str) -> list[Average]:
    """The mean of a measure at each budget."""
    mean = cell.values[name].nanmean(0)
    if name == "ms":
        low, high = cell.values["ms_low"][0], cell.values["ms_high"][0]
    else:
        low, high = resampled(cell, name).nanquantile(LEVELS, dim=0)
    return [Average(*each) for each in zip(mean.tolist(), low.tolist(), high.tolist())]


def resampled(cell: Cell, name: str) -> Tensor:
    """The mean of a measure over anchors that are drawn anew: (RESAMPLES, budgets)."""
    values = cell.values[name]
    shares, defined = _shares(len(values)), ~values.isnan()
    means = (shares @ values.nan_to_num(0.0)) / (shares @ defined.double())
    if name != "ess_per_ms":
        return means
    deviation = (cell.values["ms_high"][0] / cell.values["ms_low"][0]).log() / (2 * 1.96)
    generator = torch.Generator().manual_seed(zlib.crc32(repr(cell.key).encode()))  # cells were timed independently
    return means * (deviation * torch.randn(means.shape, generator=generator, dtype=torch.float64)).exp()


@functools.lru_cache(4)
def _shares(anchors: int) -> Tensor:
    """How often each anchor is drawn (RESAMPLES, A)."""
    drawn = torch.randint(anchors, (RESAMPLES, anchors), generator=torch.Generator().manual_seed(0))
    return torch.zeros(RESAMPLES, anchors, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def summarise(cells: Iterable[Cell]) -> list[dict[str, Any]]:
    """The rows of ablation.csv: one a cell and budget, with mean, low and high of every measure."""
    rows = []
    for cell in cells:
        found = {name: average(cell, name) for name in MEASURES}
        for k, budget in enumerate(cell.budgets):
            row = _head(cell.key, cell.staleness) | {"budget": budget, "anchors": len(cell.anchors)}
            for name in MEASURES:
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), found[name][k]))
            rows.append(row)
    return rows


def _head(key: Key, staleness: float) -> dict[str, Any]:
    return {
        "proposal": key.proposal,
        "temperature": key.temperature,
        "level": key.level,
        "staleness": staleness,
        "query": key.query,
    }


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Tidy rows with one header, numbers to eight digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.8g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    replace(path, text.getvalue())
