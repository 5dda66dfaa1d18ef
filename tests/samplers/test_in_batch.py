from __future__ import annotations

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from pytorch_metric_learning.losses import NTXentLoss as MetricNTXentLoss
from pytorch_metric_learning.losses import SelfSupervisedLoss

from negbank import Exclusions
from negbank.samplers.negatives import EncodedBatch, InBatch, Mined, Negatives
from negbank.train.losses import info_nce, surrogate

B, D = 12, 6


def views(seed=0):
    z = torch.randn(2 * B, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z.requires_grad_()


def embed(raw, rows=None):
    rows = torch.arange(B) if rows is None else rows
    return EncodedBatch.from_views(rows, torch.nn.functional.normalize(raw, dim=1))


def textbook(batch, temperature):
    """−log exp(s⁺/τ) / (exp(s⁺/τ) + Σ_{other rows} exp(s/τ)), anchor by anchor (Chen et al. 2020, eq. 1)."""
    losses = []
    for a in range(2 * B):
        terms = [torch.exp(batch.anchors[a] @ batch.anchors[c] / temperature) for c in range(2 * B) if c % B != a % B]
        positive = torch.exp(batch.anchors[a] @ batch.positives[a] / temperature)
        losses.append(-torch.log(positive / (positive + sum(terms))))
    return torch.stack(losses).mean()


def gradient(loss, raw):
    return torch.autograd.grad(loss, raw)[0]


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_surrogate_gradient_and_value_equal_the_textbook_and_published_losses(temperature):
    raw = views()
    batch = embed(raw)
    negatives, _ = InBatch(temperature=temperature)(batch)
    got = gradient(surrogate(batch, negatives, temperature=temperature), raw)
    own = textbook(embed(raw), temperature)
    torch.testing.assert_close(info_nce(batch, temperature=temperature), own.detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(got, gradient(own, raw), atol=1e-6, rtol=0)
    for theirs in (
        NTXentLoss(temperature=temperature), SelfSupervisedLoss(MetricNTXentLoss(temperature=temperature))
    ):  # fmt: skip
        torch.testing.assert_close(got, gradient(theirs(*raw.chunk(2)), raw), atol=1e-6, rtol=0)


def test_exact_weights_give_the_gradient_of_the_global_loss():
    """π as weights: ∇L = ∇ mean_i −β s⁺ + log mean_{j∈D_i} exp(β s_ij), by autograd of the formula of design."""
    raw, beta = views(1), 5.0
    batch = embed(raw)
    scores = batch.anchors @ batch.candidates.T
    other = (batch.rows[:, None] != batch.candidate_rows).repeat(2, 1)
    logits = torch.where(other, beta * scores, -torch.inf)
    got = gradient(surrogate(batch, Negatives(scores, logits.detach().softmax(1)), temperature=1 / beta), raw)
    batch = embed(raw)
    scores = batch.anchors @ batch.candidates.T
    positive = (batch.anchors * batch.positives).sum(1)
    means = torch.stack([torch.exp(beta * scores[a][other[a]]).mean() for a in range(2 * B)])
    torch.testing.assert_close(got, gradient((means.log() - beta * positive).mean(), raw), atol=1e-9, rtol=0)


def test_a_learned_temperature_and_both_directions_of_pairs_give_clips_gradients():
    """Cross-entropy over the pairs of a batch, both ways, with exp(log β) a parameter (Radford et al. 2021, fig. 3)."""
    log_beta = torch.tensor(-torch.tensor(0.2).log().item(), requires_grad=True)
    left, right = torch.nn.functional.normalize(views(4), dim=1).detach().chunk(2)
    left, right = left.requires_grad_(), right.requires_grad_()
    logits, labels = left @ right.T * log_beta.exp(), torch.arange(B)
    cross_entropy = torch.nn.functional.cross_entropy
    loss = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    expected = torch.autograd.grad(loss, (left, right, log_beta))
    sampler, rows = InBatch(temperature=0.2, learn=True), torch.arange(B)
    directions = [EncodedBatch.from_pairs(rows, left, right), EncodedBatch.from_pairs(rows, right, left)]
    total = sum(surrogate(batch, sampler(batch)[0], temperature=99.0) for batch in directions) / 2
    got = torch.autograd.grad(total, (left, right, *sampler.learned))
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    value = sum(info_nce(batch, temperature=0.2) for batch in directions) / 2
    torch.testing.assert_close(value, loss.detach(), atol=1e-6, rtol=0)


def test_a_temperature_for_each_anchor_scales_its_part():
    raw = views(5)
    batch = embed(raw)
    negatives, _ = InBatch(temperature=0.2)(batch)
    own = torch.linspace(0.1, 0.5, 2 * B, dtype=torch.float64)
    got = gradient(surrogate(batch, negatives._replace(temperature=own), temperature=99.0), raw)
    batch = embed(raw)
    negatives, _ = InBatch(temperature=0.2)(batch)
    positive = (batch.anchors * batch.positives).sum(1)
    parts = (negatives.weights * (negatives.scores - positive[:, None])).sum(1)
    torch.testing.assert_close(got, gradient((parts / own).mean(), raw), atol=1e-9, rtol=0)


def test_a_learned_temperature_stays_above_its_bound_and_resumes():
    sampler = InBatch(temperature=0.02, learn=True, lowest=0.01)
    optimiser = torch.optim.SGD(sampler.learned, lr=100.0)
    (log_beta,) = sampler.learned
    log_beta.grad = torch.tensor(-1.0)
    optimiser.step()
    batch = embed(views(6))
    assert sampler(batch)[1]["temperature"] == pytest.approx(0.01)
    second = InBatch(temperature=0.02, learn=True)
    second.load_state_dict(sampler.state_dict())
    assert torch.equal(second(batch)[0].weights, sampler(batch)[0].weights)
    assert InBatch(temperature=0.02).state_dict() == {}


def test_drawn_rows_join_as_negatives_and_exclusions_hold():
    rows, drawn = torch.arange(B), torch.arange(B, B + 3)
    z = torch.nn.functional.normalize(torch.randn(2 * B + 3, D, generator=torch.Generator().manual_seed(2)), dim=1)
    batch = EncodedBatch.from_views(rows, z, drawn)
    groups = torch.arange(B + 3) % 5
    weights = InBatch(temperature=0.2, exclude=Exclusions(B + 3, groups=groups))(batch)[0].weights
    same = (groups[rows][:, None] == groups[batch.candidate_rows]).repeat(2, 1)
    assert torch.equal(weights == 0, same)
    assert (weights.sum(1) < 1).all()


def test_rows_as_near_as_the_positive_are_masked_which_holds_for_one_of_negative_score_too():
    anchors = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double(), dim=1)
    keys = torch.nn.functional.normalize(torch.tensor([[-0.1, 1.0], [-0.095, 1.0], [0.9, 1.0]]).double(), dim=1)
    batch = EncodedBatch.from_pairs(torch.arange(3), anchors, keys)
    s = anchors @ keys.T
    assert s[0, 0] < s[0, 1] < 0.9 * s[0, 0]  # that inequality alone would keep the nearer row of a negative positive
    weights, info = InBatch(temperature=0.3, perc_pos=0.9)(batch)
    assert (weights.weights > 0).tolist() == [[False, False, False], [False, False, True], [True, True, False]]
    assert info["near_positives"] == pytest.approx(3 / 9)
    free, info = InBatch(temperature=0.3)(batch)
    assert torch.equal(free.weights > 0, ~torch.eye(3, dtype=torch.bool))
    assert "near_positives" not in info
    strict = InBatch(temperature=0.3, margin_pos=0.2)(batch)[0].weights
    expected = (s <= s.diagonal()[:, None] - 0.2) & ~torch.eye(3, dtype=torch.bool)
    assert torch.equal(strict > 0, expected)
    assert int(expected.sum()) == 3


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("towers", [1, 2])
def test_a_guide_decides_in_place_of_the_encoder(towers, side, tmp_path):
    """GISTEmbed: no negative is what the guide scores above its own score of the positive less a margin."""
    random = torch.Generator().manual_seed(8)
    rows, drawn = torch.arange(B) * 2, torch.tensor([1, 5, 21])
    guides = [torch.randn(2 * B, 5, generator=random) for _ in range(towers)]
    if towers == 2:
        guides[1] = guides[0] + 0.8 * guides[1]
    paths = {}
    for name, guide in zip(("guide", "guide_right"), guides):
        np.save(tmp_path / name, guide.numpy())
        paths[name] = str(tmp_path / f"{name}.npy")
    z = torch.nn.functional.normalize(torch.randn(2 * B + 3, D, generator=random), dim=1)
    if towers == 2:
        batch = EncodedBatch.from_pairs(rows, z[:B], z[B : 2 * B], drawn, z[2 * B :])
    else:
        batch = EncodedBatch.from_views(rows, z, drawn)
    options = {"temperature": 0.3, "margin_pos": 0.1, "num_rows": 2 * B, "views": 3 - towers, "side": side}
    weights = InBatch(**options, **paths)(batch)[0].weights
    mine, theirs = guides[side if towers == 2 else 0], guides[1 - side if towers == 2 else 0]
    kept = torch.zeros_like(weights, dtype=torch.bool)
    for at, i in enumerate(rows.repeat(3 - towers).tolist()):
        positive = torch.cosine_similarity(mine[i], theirs[i], 0)
        for column, j in enumerate(batch.candidate_rows.tolist()):
            kept[at, column] = i != j and torch.cosine_similarity(mine[i], theirs[j], 0) <= positive - 0.1
    assert torch.equal(weights > 0, kept)
    own = InBatch(**options)(batch)[0].weights > 0
    assert not torch.equal(own, kept)
    assert 0 < int(kept.sum()) < kept.numel() - 2 * B


def test_a_guide_that_does_not_fit_is_refused(tmp_path):
    def saved(name, rows):
        np.save(tmp_path / name, rows.astype(np.float32))
        return str(tmp_path / name)

    good, narrow = saved("good.npy", np.ones((20, 5))), saved("narrow.npy", np.ones((20, 4)))
    short, lost = saved("short.npy", np.ones((19, 5))), saved("lost.npy", np.full((20, 5), np.nan))
    for options, message in [
        ({"guide": good, "margin_pos": None}, r"guide=.*good.npy: masks nothing without a bound; set margin_pos=0"),
        ({"guide": good, "guide_right": good}, r"guide_right=.*: expected guide alone, the rows of the data"),
        ({"guide": good, "views": 1}, r"guide_right=None: expected both, the rows of either side of the pairs"),
        ({"guide_right": good}, "guide=None, guide_right=.*: expected guide alone"),
        ({"guide_right": good, "views": 1}, "guide=None, guide_right=.*: expected both"),
        ({"guide": short}, r"guide=.*short.npy: 19 rows, expected those of the 20 training rows"),
        ({"guide": lost}, r"guide=.*lost.npy: 20 row\(s\) hold NaN or infinity, the first at \[0, 1"),
        (
            {"guide": good, "guide_right": narrow, "views": 1},
            r"shapes \(20, 5\) and \(20, 4\); expected one row a pair",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            InBatch(**{"temperature": 0.2, "margin_pos": 0.0, "num_rows": 20, **options})
    with pytest.raises(ValueError, match="masks nothing without mask=True"):
        Mined(20, temperature=0.2, margin_pos=0.0, guide=good)
    Mined(20, temperature=0.2, margin_pos=0.0, guide=good, mask=True)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="perc_pos=0: expected a value above 0"):
        InBatch(temperature=0.2, perc_pos=0)
    with pytest.raises(ValueError, match="margin_pos=nan: expected at least -2 and at most 2"):
        InBatch(temperature=0.2, margin_pos=float("nan"))
    with pytest.raises(ValueError, match="temperature=0"):
        InBatch(temperature=0)
    with pytest.raises(ValueError, match=r"lowest=0\.3: expected at most temperature=0\.2"):
        InBatch(temperature=0.2, learn=True, lowest=0.3)
    with pytest.raises(ValueError, match="expected 2·3 views"):
        EncodedBatch.from_views(torch.arange(3), torch.randn(7, 2))
    with pytest.raises(ValueError, match="keys: 5 rows, expected one for each of 2·3 views"):
        EncodedBatch.from_views(torch.arange(3), torch.randn(6, 2), keys=torch.randn(5, 2))
    with pytest.raises(ValueError, match="rows: 3 for 3 anchors and 2 keys"):
        EncodedBatch.from_pairs(torch.arange(3), torch.randn(3, 2), torch.randn(2, 2))
