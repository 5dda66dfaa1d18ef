"""How good features and embeddings are: label-free quantities of two views, and the two usual uses of labels.

Rows of unit norm are assumed throughout, so they are L2-normalised here, except in the linear probe. Row i of `view_a`
and of `view_b` are two views of the same image. All functions are pure and deterministic, and hold at most
`MAX_SIMILARITIES` similarities at a time. Similarities are float32, or float64 if the rows are, also under autocast.
"""

import math
import warnings
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SIMILARITIES = 2**24
"""Entries of the largest similarity matrix that is held, 64 MiB in float32."""

UNLABELLED = -1
"""Label of rows whose class is not known."""

TIE = 1e-6
"""Cosines closer than this are a tie: more than the rounding of float32, which must not decide a rank."""


CONSTANT = 1e-7
"""Features that deviate less than this in proportion to their mean are constant up to the rounding of float32."""


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    """Share of test rows that their k nearest train rows classify rightly, votes weighted exp(cosine / temperature).

    Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination, sec. 3.4.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) integer classes; rows of label -1 are left out.
        test_features: (M, D) float.
        test_labels: (M,) integer classes, none -1.
        k: neighbours that vote.
        temperature: above 0.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: for k outside 1..labelled train rows, temperature ≤ 0, wrong shapes, rows that are not finite, or
            test rows without label.
        TypeError: for labels or features of a wrong dtype.
    """
    _require_positive("temperature", temperature)
    train_features, classes, targets = _labelled(train_features, train_labels, test_features, test_labels)
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k={k} is not within 1..{len(train_features)} labelled train rows: choose another k")
    train, test = _unit(train_features, "train_features"), _unit(test_features, "test_features")
    right = 0
    for start, similarity in _similarities(test, train):
        nearest, rows = similarity.topk(k, dim=1)
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(weights), len(classes)).scatter_add_(1, targets[rows], weights)
        right += int((classes[votes.argmax(1)] == test_labels[start : start + len(votes)]).sum())
    return right / len(test)


def linear_probe_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    l2: float = 1.0,
    max_iter: int = 2000,
) -> float:
    """Share of test rows that multinomial logistic regression on the frozen train features classifies rightly.

    Features are standardised with the mean and deviation of the labelled train rows. Minimised is
    Σᵢ cross-entropyᵢ + l2/2 ‖W‖² (scikit-learn's with C = 1 / l2; no penalty on the bias), in float64 on the features'
    device, by full-batch L-BFGS until no entry of the gradient of the mean exceeds 1e-5.

    Args:
        train_features: (N, D) float.
        train_labels: (N,) integer classes; rows of label -1 are left out.
        test_features: (M, D) float.
        test_labels: (M,) integer classes, none -1.
        l2: penalty, above 0.
        max_iter: L-BFGS steps within which to converge.

    Returns:
        Accuracy in [0, 1].

    Raises:
        ValueError: for l2 ≤ 0, wrong shapes, rows that are not finite, or test rows without label.
        TypeError: for labels or features of a wrong dtype.

    Warns:
        RuntimeWarning: when not converged after `max_iter` steps, with the gradient that is left.
    """
    _require_positive("l2", l2)
    train_features, classes, targets = _labelled(train_features, train_labels, test_features, test_labels)
    with torch.inference_mode(False):
        deviation, mean = torch.std_mean(train_features.detach().double(), dim=0, correction=0)
        deviation = torch.where(deviation > CONSTANT * mean.abs(), deviation, 1.0)
        standardised = (train_features.detach() - mean) / deviation
        weight, bias = _logistic_regression(standardised, targets.clone(), l2, max_iter)
        scores = (test_features.detach() - mean) / deviation @ weight + bias
    return (classes[scores.argmax(1)] == test_labels).double().mean().item()


def _logistic_regression(rows: Tensor, targets: Tensor, l2: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """Weight (D, C) and bias (C,) that minimise mean cross-entropy + l2/2N ‖weight‖²."""
    tolerance = 1e-5
    weight = rows.new_zeros(rows.shape[1], int(targets.max()) + 1).requires_grad_()
    bias = rows.new_zeros(weight.shape[1]).requires_grad_()
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iter,
        max_eval=2 * max_iter,
        tolerance_grad=tolerance,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(rows @ weight + bias, targets) + l2 / (2 * len(rows)) * weight.square().sum()
        loss.backward()
        return loss

    solver.step(objective)
    with torch.enable_grad():
        objective()
    gradient = max(part.grad.abs().max().item() for part in (weight, bias) if part.grad is not None)
    if not gradient <= tolerance:
        warnings.warn(
            f"the linear probe has not converged: gradient {gradient:.1e} is above {tolerance:.0e} after "
            f"max_iter={max_iter} steps; raise max_iter or l2={l2}",
            RuntimeWarning,
            stacklevel=3,
        )
    return weight.detach(), bias.detach()


@torch.no_grad()
def view_retrieval(view_a: Tensor, view_b: Tensor, *, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Recall@k of each row of `view_b` by the same row of `view_a` among all rows of `view_b`, by cosine.

    Retrieval between views as in Cho et al. 2023, arXiv:2307.05906. Ties count against: the rank of row i is
    #{j : s_ij ≥ s_ii − 10⁻⁶}. So an encoder that maps all to one point scores 0, where luck or the order of rows would
    score it anything up to 1. Duplicate images are ties as well.

    Args:
        view_a: (N, D) float, queries.
        view_b: (N, D) float, gallery.
        ks: within 1..N−1.

    Returns:
        {k: share of rows with rank ≤ k, in [0, 1]}.

    Raises:
        ValueError: for k out of range, wrong shapes, or rows that are not finite.
        TypeError: for rows of a wrong dtype.
    """
    a, b = _unit_pair(view_a, view_b)
    for k in ks:
        if not 1 <= k < len(a):
            raise ValueError(f"ks={tuple(ks)} has {k}, which is not within 1..{len(a) - 1}, below the number of rows")
    hits = dict.fromkeys(ks, 0)
    for start, similarity in _similarities(a, b):
        positive = similarity.diagonal(start).unsqueeze(1)
        rank = (similarity >= positive - TIE).sum(1)
        for k in hits:
            hits[k] += int((rank <= k).sum())
    return {k: count / len(a) for k, count in hits.items()}


@torch.no_grad()
def global_loss(view_a: Tensor, view_b: Tensor, *, temperature: float, max_rows: int = 10_000) -> float:
    """The contrastive objective with all rows as negatives, for comparison between samplers and batch sizes:

        F = mean_i [ −β s_i⁺ + log mean_{j ∈ D_i} exp(β s_ij) ],     β = 1 / temperature

    over anchors i of both views, with s_i⁺ the cosine to the other view of the same row, and D_i both views of all
    other rows. As a mean, not a sum, it compares between numbers of rows. It is 0 under collapse and at least −2β.

    Args:
        view_a: (N, D) float, N at least 2.
        view_b: (N, D) float.
        temperature: above 0.
        max_rows: of more rows, so many evenly spaced ones stand for all; the cost is quadratic in it.

    Raises:
        ValueError: for temperature ≤ 0, max_rows < 2, wrong shapes, or rows that are not finite.
        TypeError: for rows of a wrong dtype.
    """
    _require_positive("temperature", temperature)
    if max_rows < 2:
        raise ValueError(f"max_rows={max_rows} leaves no negatives: choose at least 2")
    a, b = _unit_pair(view_a, view_b)
    if len(a) > max_rows:
        kept = torch.arange(max_rows, device=a.device) * len(a) // max_rows
        a, b = a[kept], b[kept]
    count = len(a)
    both = torch.cat([a, b])
    total = 0.0
    for start, similarity in _similarities(both, both):
        logits = similarity.div_(temperature)
        anchors = torch.arange(len(logits), device=a.device)
        positives = (start + anchors + count) % (2 * count)
        positive = logits[anchors, positives]
        logits[anchors, start + anchors] = -math.inf
        logits[anchors, positives] = -math.inf
        total += (logits.logsumexp(1) - positive).sum(dtype=torch.float64).item()
    return total / (2 * count) - math.log(2 * (count - 1))


@torch.no_grad()
def alignment(view_a: Tensor, view_b: Tensor) -> float:
    """Mean squared distance of the two views of a row, in [0, 4] (Wang & Isola 2020, arXiv:2005.10242, sec. 4.1; α=2).

    Args:
        view_a, view_b: (N, D) float, N at least 2.

    Raises:
        ValueError: for wrong shapes, or rows that are not finite.
        TypeError: for rows of a wrong dtype.
    """
    a, b = _unit_pair(view_a, view_b)
    return (a - b).square_().sum(1, dtype=torch.float64).mean().item()


@torch.no_grad()
def uniformity(z: Tensor, t: float = 2.0) -> float:
    """Log mean of exp(−t ‖x − y‖²) over distinct pairs of rows, in [−4t, 0] (Wang & Isola 2020, sec. 4.1).

    0 is collapse, the less the better spread; the cost is quadratic in N.

    Args:
        z: (N, D) float, N at least 2.
        t: above 0.

    Raises:
        ValueError: for t ≤ 0, wrong shapes, or rows that are not finite.
        TypeError: for rows of a wrong dtype.
    """
    _require_positive("t", t)
    rows = _unit(z, "z", at_least=2)
    parts = []
    for start, similarity in _similarities(rows, rows):
        exponents = similarity[:, start:].sub_(1).mul_(2 * t)
        lower = torch.ones_like(exponents, dtype=torch.bool).tril_()
        parts.append(exponents.masked_fill_(lower, -math.inf).flatten().logsumexp(0).double())
    return torch.stack(parts).logsumexp(0).item() - math.log(len(rows) * (len(rows) - 1) / 2)


@torch.no_grad()
def mean_cosine(z: Tensor) -> float:
    """Mean cosine over distinct pairs of rows, (‖Σ zᵢ‖² − Σ ‖zᵢ‖²) / (N (N − 1)); 1 is collapse. O(N·D).

    Args:
        z: (N, D) float, N at least 2.

    Raises:
        ValueError: for wrong shapes, or rows that are not finite.
        TypeError: for rows of a wrong dtype.
    """
    _require_rows(z, "z", 2)
    return pair_cosine(z).item()


def pair_cosine(z: Tensor) -> Tensor:
    """`mean_cosine` of finite rows as a tensor () float64: on a device nobody has to wait for it."""
    rows = F.normalize(z.detach().to(torch.promote_types(z.dtype, torch.float32)), dim=1)
    pairs = rows.sum(0, dtype=torch.float64).square().sum() - rows.square().sum(dtype=torch.float64)
    return pairs / (len(rows) * (len(rows) - 1))


def _similarities(rows: Tensor, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First row and inner products (chunk, N) of `rows` (M, D) with all `columns` (N, D), chunk after chunk."""
    chunk = max(1, MAX_SIMILARITIES // len(columns))
    for start in range(0, len(rows), chunk):
        with torch.autocast(rows.device.type, enabled=False):
            product = rows[start : start + chunk] @ columns.T
        yield start, product


def _unit(rows: Tensor, name: str, at_least: int = 1) -> Tensor:
    """Rows divided by their L2 norm, in float32 or wider."""
    _require_rows(rows, name, at_least)
    return F.normalize(rows.detach().to(torch.promote_types(rows.dtype, torch.float32)), dim=1)


def _unit_pair(view_a: Tensor, view_b: Tensor) -> tuple[Tensor, Tensor]:
    if view_a.shape != view_b.shape:
        shapes = f"view_a is {tuple(view_a.shape)} and view_b {tuple(view_b.shape)}"
        raise ValueError(f"{shapes}: give two views of the same rows")
    return _unit(view_a, "view_a", at_least=2), _unit(view_b, "view_b", at_least=2)


def _labelled(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The train rows that have labels, the classes (C,) among them, and each row's index into the classes."""
    for side, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        _require_rows(features, f"{side}_features", at_least=1)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise TypeError(f"{side}_labels are {labels.dtype}: give integer classes, such as labels.long()")
        if labels.shape != features.shape[:1]:
            raise ValueError(f"{side}_labels are {tuple(labels.shape)}: give one to each of {len(features)} features")
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features have width {train_features.shape[1]} and test_features {test_features.shape[1]}: "
            "give features of one encoder"
        )
    if (test_labels == UNLABELLED).any():
        unknown = int((test_labels == UNLABELLED).sum())
        raise ValueError(f"test_labels have {unknown} rows of label {UNLABELLED}, unlabelled: leave these rows out")
    known = train_labels != UNLABELLED
    if not known.any():
        raise ValueError(f"train_labels are all {UNLABELLED}, unlabelled: give some labelled rows")
    classes, targets = train_labels[known].unique(return_inverse=True)
    return train_features[known], classes, targets


def _require_rows(rows: Tensor, name: str, at_least: int) -> None:
    if not rows.is_floating_point():
        raise TypeError(f"{name} are {rows.dtype}: give float rows")
    if rows.ndim != 2 or len(rows) < at_least:
        raise ValueError(f"{name} are {tuple(rows.shape)}: give (N, D) with N at least {at_least}")
    if not rows.isfinite().all():
        bad = int((~rows.isfinite()).any(1).sum())
        raise ValueError(f"{name} have {bad} of {len(rows)} rows that are not finite: find where training diverged")


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}={value} must be above 0")
