"""Means and intervals against the normal law."""

from __future__ import annotations

import math

import pytest
import torch

from negbank.train.studies.ablation.average import average, resampled


def test_intervals_are_about_those_of_the_normal_law_and_skip_the_undefined(made):
    ess = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    error = 1.96 * float(ess.std()) / math.sqrt(200)
    found = average(made("p", ess), "ess")[0]
    assert found.mean == pytest.approx(float(ess.mean()))
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((error, error), rel=0.12)
    holes = torch.cat((ess, torch.full((200,), math.nan, dtype=torch.float64)))
    assert average(made("p", holes), "ess")[0].mean == pytest.approx(float(ess.mean()))
    assert all(map(math.isnan, average(made("p", holes[200:]), "ess")[0]))


def test_the_clock_widens_the_intervals_that_rest_on_it(made):
    ess = torch.full((50,), 0.5)
    exact, noisy = (average(made("p", ess, spread=spread), "ess_per_ms")[0] for spread in (1.0, 2.0))
    assert exact == pytest.approx((0.5, 0.5, 0.5))
    assert (noisy.low, noisy.high) == pytest.approx((0.25, 1.0), rel=0.2)
    assert resampled(made("p", ess, spread=2.0), "ess").std() == 0
