from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import NTXentLoss
from pytorch_metric_learning.losses import NTXentLoss as MetricNTXentLoss
from pytorch_metric_learning.losses import SelfSupervisedLoss

from negbank import Exclusions
from negbank.samplers.negatives import Dcl, EncodedBatch, Hcl
from negbank.train.losses import surrogate

B, D = 8, 5


def raw(seed=0):
    z = torch.randn(2 * B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z.requires_grad_()


def embed(x):
    return EncodedBatch.from_views(torch.arange(B), torch.nn.functional.normalize(x, dim=1))


def gradient(loss, x):
    return torch.autograd.grad(loss, x)[0]


def make(temperature, *, concentration=0.0, **options):
    if concentration == 0:
        return Dcl(temperature=temperature, **options)
    return Hcl(temperature=temperature, concentration=concentration, **options)


def ours(x, temperature, **options):
    batch = embed(x)
    negatives, info = make(temperature, **options)(batch)
    return gradient(surrogate(batch, negatives, temperature=temperature), x), negatives, info


def literal(x, temperature, tau_plus, beta):
    """−log e⁺ / (e⁺ + R g), g = max{(E_{q_β}[e⁻] − τ⁺ e⁺) / (1 − τ⁺), e^{−1/t}}, and for which anchors g is bounded.

    E_{q_β}[e⁻] = mean_r e_r^β e_r / mean_r e_r^β, as Robinson et al. 2021 sample it; β = 0 is Chuang et al. 2020.
    """
    z = torch.nn.functional.normalize(x, dim=1)
    losses, bounded = [], []
    for a in range(2 * B):
        positive = torch.exp(z[a] @ z[(a + B) % (2 * B)] / temperature)
        e = torch.stack([torch.exp(z[a] @ z[c] / temperature) for c in range(2 * B) if c % B != a % B])
        true = ((e**beta * e).mean() / (e**beta).mean() - tau_plus * positive) / (1 - tau_plus)
        g = torch.clamp(true, min=math.exp(-1 / temperature))
        losses.append(-torch.log(positive / (positive + len(e) * g)))
        bounded.append(bool(g > true))
    return torch.stack(losses).mean(), bounded


@pytest.mark.parametrize("temperature", [0.2, 0.5])
@pytest.mark.parametrize(
    ("tau_plus", "concentration"), [(0.1, 0.0), (0.4, 0.0), (0.0, 1.0), (0.1, 1.0), (0.3, 0.5), (0.1, 3.0)]
)
def test_dcl_and_hcl_are_the_papers_read_literally(temperature, tau_plus, concentration):
    loss, _ = literal(x := raw(), temperature, tau_plus, concentration)
    got, negatives, _ = ours(raw(), temperature, tau_plus=tau_plus, concentration=concentration)
    torch.testing.assert_close(got, gradient(loss, x), atol=1e-9, rtol=0)
    assert (negatives.weights < 0).any() == (concentration > 0)


def test_the_positive_has_its_own_weight_where_the_bound_holds():
    """A positive so near that it outweighs the negatives: g is bounded, and the default p = Σ_r w_r would be wrong."""
    x = raw().detach()
    x[B : B + 3] = x[:3] + 0.01
    x.requires_grad_()
    loss, bounded = literal(x, 0.3, 0.5, 0.0)
    assert sum(bounded) >= 6
    got, negatives, info = ours(x.detach().requires_grad_(), 0.3, tau_plus=0.5)
    torch.testing.assert_close(got, gradient(loss, x), atol=1e-9, rtol=0)
    bounded = torch.tensor(bounded)
    total = negatives.weights.sum(1)
    assert (total[bounded] == 0).all()
    assert (negatives.positive_weight[bounded] > 0).all()
    torch.testing.assert_close(negatives.positive_weight[~bounded], total[~bounded])
    assert info["bounded"] == sum(bounded) / (2 * B)


def test_without_prior_and_concentration_it_is_info_nce():
    x = raw()
    expected = gradient(NTXentLoss(temperature=0.2)(*x.chunk(2)), x)
    torch.testing.assert_close(ours(raw(), 0.2, tau_plus=0.0)[0], expected, atol=1e-9, rtol=0)
    x = raw()
    expected = gradient(SelfSupervisedLoss(MetricNTXentLoss(temperature=0.2))(*x.chunk(2)), x)
    torch.testing.assert_close(ours(raw(), 0.2, tau_plus=0.0)[0], expected, atol=1e-9, rtol=0)


def test_a_sharp_temperature_does_not_overflow():
    x = torch.randn(2 * B, D, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]
    found = [
        Hcl(temperature=0.01, tau_plus=0.1, concentration=2.0)(embed(x.to(dtype)))[0].weights.double()
        for dtype in (torch.float32, torch.float64)
    ]
    assert found[0].isfinite().all()
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-3)


def test_excluded_rows_weigh_nothing_and_an_anchor_without_negatives_is_left_alone():
    groups = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    _, negatives, _ = ours(raw(), 0.3, concentration=1.0, exclude=Exclusions(B, groups=groups))
    same = (groups[:, None] == groups).repeat(2, 2)
    assert torch.equal(negatives.weights == 0, same)
    alone = torch.arange(B + 1) // B  # rows 0..B−1 have row B for a negative, which is in no batch here
    got, _, _ = ours(raw(), 0.3, concentration=1.0, exclude=Exclusions(B + 1, groups=alone))
    assert (got == 0).all()


def test_bad_input_is_named():
    for options, message in [
        ({"temperature": 0}, "temperature=0"),
        ({"temperature": 0.1, "tau_plus": 1.0}, "tau_plus=1.0: expected at least 0 and below 1"),
        ({"temperature": 0.1, "concentration": -1}, "concentration=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            Hcl(**options)


def test_hcl_without_concentration_is_dcl():
    batch = embed(raw())
    for mine, theirs in zip(Hcl(temperature=0.3, concentration=0.0)(batch)[0][:3], Dcl(temperature=0.3)(batch)[0][:3]):
        assert torch.equal(mine, theirs)
