"""Means over anchors with 95 % intervals: the percentile bootstrap over anchors (Efron & Tibshirani 1993, ch. 13).

Anchors are drawn anew with replacement, the same ones for every measurement of as many anchors, so that ratios of two
are paired. An anchor for which a measure is not defined is left out of its mean. The interval says how far the mean
over these anchors may be from that over all rows; of a single anchor nothing but the clock is uncertain. That of ms is
of the median over timed calls, and that of ess_per_ms has both: ms varies between resamples as a log-normal with 95 %
of its mass between ms_low and ms_high.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from negbank.train.studies.ablation.measurement import MEASURES, Measurement

RESAMPLES = 1000
LEVELS = torch.tensor([0.025, 0.975], dtype=torch.float64)


class Average(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def average(measurement: Measurement, name: str) -> list[Average]:
    """The mean of a measure at each budget."""
    mean = measurement.values[name].nanmean(0)
    if name == "ms":
        low, high = measurement.values["ms_low"][0], measurement.values["ms_high"][0]
    else:
        low, high = resampled(measurement, name).nanquantile(LEVELS, dim=0)
    return [Average(*each) for each in zip(mean.tolist(), low.tolist(), high.tolist())]


def resampled(measurement: Measurement, name: str) -> Tensor:
    """The mean of a measure over anchors that are drawn anew: (RESAMPLES, budgets)."""
    values = measurement.values[name]
    shares, defined = _shares(len(values)), ~values.isnan()
    means = (shares @ values.nan_to_num(0.0)) / (shares @ defined.double())
    if name != "ess_per_ms":
        return means
    deviation = (measurement.values["ms_high"][0] / measurement.values["ms_low"][0]).log() / (2 * 1.96)
    generator = torch.Generator().manual_seed(
        zlib.crc32(repr(measurement.key).encode())
    )  # measurements were timed independently
    return means * (deviation * torch.randn(means.shape, generator=generator, dtype=torch.float64)).exp()


@functools.lru_cache(4)
def _shares(anchors: int) -> Tensor:
    """How often each anchor is drawn (RESAMPLES, A)."""
    drawn = torch.randint(anchors, (RESAMPLES, anchors), generator=torch.Generator().manual_seed(0))
    return torch.zeros(RESAMPLES, anchors, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def summarise(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """The rows of ablation.csv: one a measurement and budget, with mean, low and high of every measure."""
    rows = []
    for measurement in measurements:
        found = {name: average(measurement, name) for name in MEASURES}
        for k, budget in enumerate(measurement.budgets):
            proposal, temperature, level, query = measurement.key
            row = {"proposal": proposal, "temperature": temperature, "level": level, "staleness": measurement.staleness}
            row |= {"query": query, "budget": budget, "anchors": len(measurement.anchors)}
            for name in MEASURES:
                row |= dict(zip((name, f"{name}_low", f"{name}_high"), found[name][k]))
            rows.append(row)
    return rows
