"""Tensors, any map-style data set, and pairs of two: files, views and what is refused."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import kstest
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from negbank.counter import Counter
from negbank.train.data.contract import Pairs, Splits, Subset, raw, subset
from negbank.train.data.dataset import FromDataset
from negbank.train.data.pairs import pairs
from negbank.train.data.tensors import TensorData, tensors

N = 30
X = torch.randn(N, 3, 5, generator=torch.Generator().manual_seed(0))


def seeds(count: int, seed: int = 0) -> Tensor:
    return Counter.of(seed).seeds(count)


def saved(folder: Path, kind: str, tensor: Tensor = X) -> str:
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, tensor.numpy())
    elif kind == "npz":
        np.savez(path, x=tensor.numpy(), other=np.zeros(3))
    elif kind == "safetensors":
        save_file({"x": tensor, "other": torch.zeros(3)}, path)
    else:
        torch.save({"x": tensor, "other": torch.zeros(3)}, path)
    return str(path)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors", "pt"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int32])
def test_files_are_read_and_rows_held_out(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    x = (X * 10).to(dtype)
    made = tensors(saved(tmp_path, kind, x), key=None if kind == "npy" else "x", holdout=0.2)
    assert (len(made.train), len(made.test), made.classes) == (24, 6, ())
    rows = torch.cat((made.train.rows, made.test.rows))
    assert torch.equal(rows.sort().values, torch.arange(N))
    found = made.test.read(torch.tensor([3, 0, 3]), None)
    expected = x[made.test.rows[[3, 0, 3]]]
    assert torch.equal(found, expected.to(torch.float32 if dtype.is_floating_point else torch.int64))
    assert made.train.describes == {"shape": (3, 5)}
    assert torch.equal(raw(made.test, torch.tensor([1])), x[made.test.rows[1:2]].flatten(1).float())
    assert len(tensors(saved(tmp_path, kind, x), key=None if kind == "npy" else "x", holdout=0.0).train) == N
    with pytest.raises(IndexError):
        made.train.data.read(torch.tensor([N]), None)


def test_a_mapped_file_is_sent_by_its_name(tmp_path: Path) -> None:
    data = tensors(saved(tmp_path, "npy", torch.randn(2000, 100)), holdout=0.0, noise=0.5).train
    sent = pickle.dumps(data)
    assert len(sent) < 2000
    rows = torch.tensor([5, 1999])
    assert torch.equal(pickle.loads(sent).read(rows, seeds(2)), data.read(rows, seeds(2)))


def test_labels_are_read_for_evaluation(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.arange(N) % 4 - 1)
    made = tensors(saved(tmp_path, "npy"), labels=str(tmp_path / "y.npy"))
    assert made.classes == ("0", "1", "2")
    assert torch.equal(made.train.labels, made.train.rows % 4 - 1)
    data = TensorData(TensorDataset(X, torch.arange(N)))
    assert torch.equal(data.labels, torch.arange(N))


@pytest.mark.parametrize("shape", [(N, 7), (N, 1), (N, 2, 3, 5)])
def test_a_view_is_the_same_bits_in_any_batch(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    data = TensorData(torch.randn(*shape, generator=torch.Generator().manual_seed(0)), noise=0.3, mask=0.1)
    rows = torch.arange(N).repeat(2)
    together = data.read(rows, seeds(2 * N))
    assert not torch.equal(together[:N], together[N:])
    monkeypatch.setattr("negbank.train.data.tensors.BLOCK", 64)
    for part in torch.randperm(2 * N, generator=torch.Generator().manual_seed(1)).split(7):
        assert torch.equal(data.read(rows[part], seeds(2 * N)[part]), together[part])


def test_noise_is_gaussian_and_the_mask_a_share() -> None:
    data = TensorData(torch.full((200, 101), 2.0), noise=0.5, mask=0.25)
    found = data.read(torch.arange(200), seeds(200))
    zeros = found == 0
    assert float(zeros.float().mean()) == pytest.approx(0.25, abs=0.02)
    assert kstest(((found[~zeros] - 2) / 0.5).numpy(), "norm").pvalue > 1e-3
    assert torch.equal(data.read(torch.arange(3), None), torch.full((3, 101), 2.0))
    whole = TensorData(torch.arange(24).view(4, 6) + 1, mask=1.0)
    assert not whole.read(torch.arange(4), seeds(4)).any()
    assert torch.equal(whole.read(torch.arange(4), None), torch.arange(24).view(4, 6) + 1)  # the rows stay as they are
    corr = np.corrcoef(TensorData(torch.zeros(2000, 2), noise=1.0, mask=0.0).read(torch.arange(2000), seeds(2000)).T)
    assert abs(corr[0, 1]) < 0.1


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    for kind in ("npz", "safetensors", "pt"):
        with pytest.raises(ValueError, match=rf"path=.*x\.{kind}: holds other, x; choose one by key"):
            tensors(saved(tmp_path, kind))
        with pytest.raises(ValueError, match="key=y is not in it; it holds other, x"):
            tensors(saved(tmp_path, kind), key="y")
    torch.save({"x": Path("of a class that is no tensor")}, tmp_path / "evil.pt")
    (tmp_path / "text.safetensors").write_text("text")
    (tmp_path / "text.npy").write_text("text")
    np.save(tmp_path / "names.npy", np.array(["a", "b"]))
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "yes.npy", np.ones((3, 2), dtype=bool))
    for name, message in (
        ("evil.pt", "not readable .*[Ww]eights.only"),
        ("text.safetensors", "not readable"),
        ("text.npy", r"text\.npy: "),
        ("missing.npy", "no such file or folder; check the path"),
        ("x.csv", r"ends in \.csv; expected \.npy"),
        ("names.npy", "holds <U1; expected floating or integer"),
        ("yes.npy", "holds bool; expected floating or integer"),
        ("flat.npy", r"expected a row for each input, \(N, \.\.\.\), got shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=f"^path=.*{message}"):
            tensors(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"noise=0\.1: the entries are integers"):
        TensorData(torch.arange(6).view(3, 2), noise=0.1)
    with pytest.raises(ValueError, match=r"mask=1\.5: expected at least 0 and at most 1"):
        TensorData(X, mask=1.5)
    np.save(tmp_path / "y.npy", np.zeros(N))
    with pytest.raises(ValueError, match=r"labels=.*y\.npy: holds float64 of shape \(30,\); give an \.npy"):
        tensors(saved(tmp_path, "npy"), labels=str(tmp_path / "y.npy"))


class Noisy(Dataset[Any]):
    """Items with a label, whose transform draws from all three global generators."""

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return X[row] + noise, row % 3


def test_a_data_sets_own_transforms_follow_the_seeds() -> None:
    data = FromDataset(Noisy(), labels="items")
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    rows = torch.tensor([4, 4, 9, 0])
    together = data.read(rows, seeds(4))
    assert together.shape == (4, 3, 5)
    assert not torch.equal(together[0], together[1])
    for part in torch.tensor([3, 1, 0, 2]).split(1):
        assert torch.equal(data.read(rows[part], seeds(4)[part]), together[part])
    assert torch.equal(data.read(rows, None), data.read(rows.flip(0), None).flip(0))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert torch.equal(data.labels, torch.arange(N) % 3)
    assert (data.describes, len(data), data.read(rows[:0], seeds(0)).shape) == ({"shape": (3, 5)}, N, (0, 3, 5))


def test_a_view_is_for_training_alone() -> None:
    data = FromDataset(TensorDataset(X), view=lambda x: x + torch.rand(()))
    assert torch.equal(data.read(torch.arange(4), None), X[:4])
    assert not torch.equal(data.read(torch.arange(4), seeds(4)), X[:4])
    assert data.labels is None


def test_items_that_cannot_be_moved_are_refused() -> None:
    data = FromDataset([{"a": 1.0}, {"a": 2.0}])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"items of type dict make a dict without `\.to\(device\)`; have view="):
        data.read(torch.arange(2), None)
    with pytest.raises(ValueError, match=r"labels must have shape \(30,\)"):
        FromDataset(TensorDataset(X), labels=torch.arange(3))


def side(path: str, **options: Any) -> Any:
    return lambda: tensors(path, **options)


def test_pairs_of_two_sides(tmp_path: Path) -> None:
    path = saved(tmp_path, "npy")
    np.save(tmp_path / "other.npy", np.arange(N * 2).reshape(N, 2))
    np.save(tmp_path / "g.npy", np.arange(N) // 2)
    other = side(str(tmp_path / "other.npy"))
    made = pairs(side(path), other, groups=str(tmp_path / "g.npy"))
    for each in (made.train, made.test):
        assert isinstance(each, Pairs)
        assert torch.equal(each.left.rows, each.right.rows)
        assert torch.equal(each.groups, each.left.rows // 2)
    row = int(made.train.left.rows[3])
    assert made.train.right.read(torch.tensor([3]), None).tolist() == [[2 * row, 2 * row + 1]]
    assert subset(made, 10).train.groups.shape == (10,)
    whole = pairs(side(path, holdout=0.0), side(path, holdout=0.0), groups=str(tmp_path / "g.npy"))
    assert (whole.test, len(whole.train.groups)) == (None, N)


def test_sides_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, "npy")
    np.save(tmp_path / "short.npy", np.zeros((20, 2)))
    np.save(tmp_path / "g.npy", np.arange(5))
    short, half = side(str(tmp_path / "short.npy")), Splits(Subset(TensorData(X), torch.arange(24)), None)
    for right, message in (
        (short, "24 and 16 training rows"),
        (side(path, holdout=0.0), f"24 and {N} training rows"),
        (lambda: half, "the sides hold out different rows; give both the same holdout"),
        (lambda: half._replace(train=tensors(path).train), "one side has held-out rows, the other none"),
        (lambda: pairs(side(path), side(path)), "not pairs"),
    ):
        with pytest.raises(ValueError, match=f"^left, right: .*{message}"):
            pairs(side(path), right)
    with pytest.raises(ValueError, match="groups: 5 for 24 training pairs"):
        pairs(side(path), side(path), groups=str(tmp_path / "g.npy"))
