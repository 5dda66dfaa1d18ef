"""Evaluation against scikit-learn, lightly, and double loops in float64."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking import knn_predict
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from negbank.train.evaluate import measures as evaluate
from negbank.train.evaluate.measures import (
    alignment,
    global_loss,
    knn_accuracy,
    linear_probe_accuracy,
    mean_cosine,
    uniformity,
    view_retrieval,
)

Data = tuple[Tensor, Tensor, Tensor, Tensor]


def classes(train: int, test: int, width: int, count: int, spread: float, seed: int = 0) -> Data:
    """Overlapping Gaussian classes with correlated, badly scaled features."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(count, (train + test,), generator=generator)
    mixing = torch.randn(width, width, generator=generator) / width**0.5
    scale = torch.logspace(-1, 1, width)
    centres = torch.randn(count, width, generator=generator)
    noise = torch.randn(train + test, width, generator=generator)
    features = ((centres[labels] + spread * noise) @ mixing * scale + 1).float()
    return features[:train], labels[:train], features[train:], labels[train:]


def views(count: int, width: int, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base, first, second = torch.randn(3, count, width, generator=generator, dtype=torch.float64).unbind()
    return F.normalize(base + noise * first, dim=1), F.normalize(base + noise * second, dim=1)


@pytest.fixture(params=[2**24, 40], ids=["one chunk", "many chunks"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MAX_SIMILARITIES", request.param)


# k nearest neighbours


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (7, 0.1), (20, 0.5), (20, 0.001)])
def test_knn_is_scikit_learns_with_the_same_weights(k: int, temperature: float) -> None:
    train, train_labels, test, test_labels = classes(300, 90, 12, 5, spread=2.0)
    oracle = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp(-distance / temperature)
    ).fit(train.double().numpy(), train_labels.numpy())
    expected = oracle.score(test.double().numpy(), test_labels.numpy())
    assert 0.3 < expected < 0.95
    actual = knn_accuracy(train, train_labels, test, test_labels, k=k, temperature=temperature)
    assert actual == pytest.approx(expected)


def test_knn_is_lightlys() -> None:
    train, train_labels, test, test_labels = classes(300, 90, 12, 5, spread=2.0)
    bank = F.normalize(train, dim=1).T
    predicted = knn_predict(F.normalize(test, dim=1), bank, train_labels, num_classes=5, knn_k=20, knn_t=0.1)
    expected = (predicted[:, 0] == test_labels).double().mean().item()
    assert knn_accuracy(train, train_labels, test, test_labels) == pytest.approx(expected)


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe_accuracy])
def test_unlabelled_train_rows_are_left_out(accuracy: Callable[..., float]) -> None:
    train, train_labels, test, test_labels = classes(300, 90, 12, 5, spread=2.0)
    expected = accuracy(train, train_labels, test, test_labels)
    extra = torch.full((90,), -1)
    assert accuracy(torch.cat([test, train]), torch.cat([extra, train_labels]), test, test_labels) == expected


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe_accuracy])
def test_classes_may_be_any_integers(accuracy: Callable[..., float]) -> None:
    train, train_labels, test, test_labels = classes(300, 90, 12, 5, spread=2.0)
    expected = accuracy(train, train_labels, test, test_labels)
    assert accuracy(train, train_labels * 10**9 + 7, test, test_labels * 10**9 + 7) == expected
    assert accuracy(train, train_labels, test, test_labels + 100) == 0.0


@pytest.mark.parametrize("accuracy", [knn_accuracy, linear_probe_accuracy])
def test_label_errors(accuracy: Callable[..., float]) -> None:
    train, train_labels, test, test_labels = classes(60, 9, 4, 3, spread=1.0)
    with pytest.raises(TypeError, match=r"train_labels are torch.float32: give integer classes"):
        accuracy(train, train_labels.float(), test, test_labels)
    with pytest.raises(TypeError, match=r"test_labels are torch.float64"):
        accuracy(train, train_labels, test, test_labels.double())
    with pytest.raises(ValueError, match=r"test_labels have 2 rows of label -1"):
        accuracy(train, train_labels, test, test_labels.index_fill(0, torch.tensor([0, 3]), -1))
    with pytest.raises(ValueError, match="train_labels are all -1"):
        accuracy(train, torch.full_like(train_labels, -1), test, test_labels)
    with pytest.raises(ValueError, match=r"train_labels are \(59,\)"):
        accuracy(train, train_labels[1:], test, test_labels)
    with pytest.raises(ValueError, match="width 4 and test_features 3"):
        accuracy(train, train_labels, test[:, 1:], test_labels)


def test_knn_errors() -> None:
    train, train_labels, test, test_labels = classes(60, 9, 4, 3, spread=1.0)
    train_labels[:10] = -1
    with pytest.raises(ValueError, match=r"k=51 is not within 1\.\.50 labelled train rows"):
        knn_accuracy(train, train_labels, test, test_labels, k=51)
    assert 0 <= knn_accuracy(train, train_labels, test, test_labels, k=50) <= 1
    with pytest.raises(ValueError, match="temperature=0"):
        knn_accuracy(train, train_labels, test, test_labels, temperature=0)


# linear probe


@pytest.mark.parametrize("l2", [1.0, 10.0])
def test_probe_is_scikit_learns(l2: float) -> None:
    train, train_labels, test, test_labels = classes(500, 2000, 20, 4, spread=1.5)
    scaler = StandardScaler().fit(train.double().numpy())
    oracle = LogisticRegression(C=1 / l2, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    oracle.fit(scaler.transform(train.double().numpy()), train_labels.numpy())
    weight, bias = evaluate._logistic_regression(
        torch.from_numpy(scaler.transform(train.double().numpy())), train_labels, l2, max_iter=1000
    )
    np.testing.assert_allclose((weight - weight.mean(1, keepdim=True)).T, oracle.coef_, atol=2e-3)
    expected = oracle.score(scaler.transform(test.double().numpy()), test_labels.numpy())
    assert 0.4 < expected < 0.95
    actual = linear_probe_accuracy(train, train_labels, test, test_labels, l2=l2)
    assert actual == pytest.approx(expected, abs=1e-3)
    assert bias.shape == (4,)


def test_probe_does_not_depend_on_scale_and_ignores_constant_features() -> None:
    train, train_labels, test, test_labels = classes(400, 500, 12, 4, spread=1.5)
    expected = linear_probe_accuracy(train, train_labels, test, test_labels)
    assert linear_probe_accuracy(train * 1e3, train_labels, test * 1e3, test_labels) == pytest.approx(
        expected, abs=4e-3
    )
    constant = torch.full((400, 2), 0.1)
    actual = linear_probe_accuracy(
        torch.cat([train, constant], 1), train_labels, torch.cat([test, constant[:1].expand(500, 2)], 1), test_labels
    )
    assert actual == pytest.approx(expected, abs=4e-3)


def test_probe_warns_when_not_converged() -> None:
    train, train_labels, test, test_labels = classes(400, 50, 12, 4, spread=1.5)
    with pytest.warns(RuntimeWarning, match="max_iter=2 steps; raise max_iter"):
        linear_probe_accuracy(train, train_labels, test, test_labels, max_iter=2)
    with pytest.raises(ValueError, match=r"l2=0\.0"):
        linear_probe_accuracy(train, train_labels, test, test_labels, l2=0.0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_probe_fits_where_gradients_are_off(mode: Callable[[], torch.no_grad | torch.inference_mode]) -> None:
    data = classes(200, 90, 6, 3, spread=1.0)
    expected = linear_probe_accuracy(*data)
    with mode(), torch.autocast("cpu", torch.bfloat16):
        train, train_labels, test, test_labels = (part.clone() for part in data)
        assert linear_probe_accuracy(train, train_labels, test, test_labels) == expected


def test_probe_converges_within_its_default_steps() -> None:
    train, train_labels, test, test_labels = classes(4000, 500, 256, 10, spread=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0.5 < linear_probe_accuracy(train, train_labels, test, test_labels) < 0.99


# retrieval


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_retrieval_is_the_double_loop(dtype: torch.dtype) -> None:
    a, b = views(50, 12, noise=0.8)
    ranks = [sum(float(a[i] @ b[j]) >= float(a[i] @ b[i]) - 1e-6 for j in range(50)) for i in range(50)]
    expected = {k: sum(rank <= k for rank in ranks) / 50 for k in (1, 3, 10)}
    assert 0.2 < expected[1] < expected[10] < 1
    assert view_retrieval((3 * a).to(dtype), b.to(dtype), ks=(1, 3, 10)) == expected


def test_retrieval_of_perfect_views_is_one_and_is_not_symmetric() -> None:
    a, b = views(50, 12, noise=0.8)
    assert view_retrieval(a, a) == {1: 1.0, 5: 1.0}
    assert view_retrieval(a, b) != view_retrieval(b, a)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("width", [1, 7, 128])
def test_collapsed_encoders_retrieve_nothing(width: int) -> None:
    point = torch.randn(1, width, generator=torch.Generator().manual_seed(0)).expand(333, width)
    assert view_retrieval(point, point) == {1: 0.0, 5: 0.0}
    jitter = 1e-8 * torch.randn(333, width, generator=torch.Generator().manual_seed(1))
    assert view_retrieval(point + jitter, point + jitter) == {1: 0.0, 5: 0.0}
    assert view_retrieval(torch.zeros(333, width), torch.zeros(333, width)) == {1: 0.0, 5: 0.0}


def test_retrieval_errors() -> None:
    a, b = views(6, 3)
    with pytest.raises(ValueError, match=r"ks=\(1, 6\) has 6, which is not within 1\.\.5"):
        view_retrieval(a, b, ks=(1, 6))
    with pytest.raises(ValueError, match=r"view_a is \(6, 3\) and view_b \(5, 3\)"):
        view_retrieval(a, b[1:])
    with pytest.raises(ValueError, match="view_b have 1 of 6 rows that are not finite"):
        view_retrieval(a, b.index_fill(0, torch.tensor(2), math.nan), ks=(1,))


# losses and geometry


def global_loss_by_loops(a: Tensor, b: Tensor, temperature: float) -> float:
    both, count, beta = [*a, *b], len(a), 1 / temperature
    losses = []
    for i, anchor in enumerate(both):
        others = [math.exp(beta * float(anchor @ both[j])) for j in range(2 * count) if j % count != i % count]
        losses.append(-beta * float(anchor @ both[(i + count) % (2 * count)]) + math.log(sum(others) / len(others)))
    return sum(losses) / len(losses)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_global_loss_is_the_double_loop(temperature: float) -> None:
    a, b = views(30, 5)
    expected = global_loss_by_loops(a, b, temperature)
    assert global_loss(2 * a, b, temperature=temperature) == pytest.approx(expected, rel=1e-12)
    assert global_loss(a.float(), b.float(), temperature=temperature) == pytest.approx(expected, rel=1e-5)
    assert global_loss(b, a, temperature=temperature) == pytest.approx(expected, rel=1e-12)


def test_global_loss_of_many_rows_is_that_of_evenly_spaced_ones() -> None:
    a, b = views(31, 5)
    kept = torch.tensor([0, 4, 8, 13, 17, 22, 26])
    expected = global_loss_by_loops(a[kept], b[kept], 0.2)
    assert global_loss(a, b, temperature=0.2, max_rows=7) == pytest.approx(expected, rel=1e-12)


def test_global_loss_limits() -> None:
    point = torch.ones(20, 4)
    assert global_loss(point, point, temperature=0.1) == pytest.approx(0, abs=1e-5)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert global_loss(opposite, opposite, temperature=0.01) == pytest.approx(-200)
    with pytest.raises(ValueError, match="temperature=-1"):
        global_loss(point, point, temperature=-1)
    with pytest.raises(ValueError, match="max_rows=1"):
        global_loss(point, point, temperature=1, max_rows=1)
    with pytest.raises(ValueError, match="N at least 2"):
        global_loss(point[:1], point[:1], temperature=1)


def test_alignment_is_the_mean_squared_distance() -> None:
    a, b = views(30, 5)
    expected = sum(float(((x - y) ** 2).sum()) for x, y in zip(a, b)) / 30
    assert alignment(a, 5 * b) == pytest.approx(expected, rel=1e-12)
    assert alignment(a, -a) == pytest.approx(4)


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("t", [2.0, 500.0])
def test_uniformity_is_the_double_loop(t: float) -> None:
    z, _ = views(30, 5)
    pairs = [math.exp(-t * float(((z[i] - z[j]) ** 2).sum())) for i in range(30) for j in range(i)]
    expected = math.log(sum(pairs) / len(pairs))
    assert uniformity(z, t) == pytest.approx(expected, rel=1e-10)
    assert uniformity(3 * z.float(), t) == pytest.approx(expected, rel=1e-4)


def test_mean_cosine_is_the_double_loop() -> None:
    z, _ = views(30, 5)
    pairs = [float(z[i] @ z[j]) for i in range(30) for j in range(i)]
    assert mean_cosine(2 * z) == pytest.approx(sum(pairs) / len(pairs), rel=1e-10)


def test_collapse_shows() -> None:
    point = torch.ones(20, 4)
    assert mean_cosine(point) == pytest.approx(1)
    assert uniformity(point) == pytest.approx(0, abs=1e-5)
    assert alignment(point, point) == 0


def test_similarities_are_of_full_precision_under_autocast() -> None:
    a, b = (view.float() for view in views(40, 8))
    plain = view_retrieval(a, b), global_loss(a, b, temperature=0.05), uniformity(a)
    with torch.autocast("cpu", torch.bfloat16):
        assert (view_retrieval(a, b), global_loss(a, b, temperature=0.05), uniformity(a)) == plain


@pytest.mark.parametrize("quantity", [mean_cosine, uniformity])
def test_geometry_errors(quantity: Callable[[Tensor], float]) -> None:
    with pytest.raises(TypeError, match=r"z are torch.int64"):
        quantity(torch.ones(4, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"z are \(1, 2\): give \(N, D\) with N at least 2"):
        quantity(torch.ones(1, 2))
    with pytest.raises(ValueError, match="z have 1 of 4 rows"):
        quantity(torch.ones(4, 2).index_fill(0, torch.tensor(1), math.inf))
