"""Tensors as data: spectra, sensor readings, embeddings of another model, anything of one shape a row.

A view of x adds Gaussian noise and sets entries to zero, both drawn from its seed (Box & Muller 1958):

    x + noise · √(−2 ln(1 − u)) · (cos, sin)(2π u')        then 0 where u'' < mask
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from negbank.bounds import Annotated, Ge, Le, Share, checked
from negbank.counter import seeded_uniforms
from negbank.train.data.contract import Splits, Subset, checked_labels
from negbank.train.data.holdout import stratified

HOLDOUT_SEED = 0
BLOCK = 1 << 20
"""Random numbers drawn at once."""


class TensorData:
    """Rows of a tensor under noise.

    Args:
        tensor: floating or integer (N, ...), read as float32 or int64; or an array that is mapped from an .npy file,
            which is read row by row; or a `TensorDataset`, whose second tensor is the labels.
        labels: integers (N,), −1 where unknown.
        noise: standard deviation of Gaussian noise on floating entries.
        mask: share of entries that are set to zero, each by itself.

    Raises:
        ValueError: for a tensor of other numbers or without rows, noise on integers, or labels that do not fit.
    """

    @checked
    def __init__(
        self,
        tensor: Tensor | np.ndarray | TensorDataset,
        *,
        labels: Tensor | None = None,
        noise: Annotated[float, Ge(0)] = 0.0,
        mask: Share = 0.2,
    ) -> None:
        if isinstance(tensor, TensorDataset):
            columns = tensor.tensors
            tensor, labels = columns[0], columns[1] if labels is None and len(columns) > 1 else labels
        self._rows: Tensor | np.ndarray = tensor
        if tensor.ndim < 2 or 0 in tensor.shape:
            raise ValueError(f"tensor: expected a row for each input, (N, ...), got shape {tuple(tensor.shape)}")
        kind = self._read(torch.arange(1)).dtype
        if noise > 0 and kind == torch.int64:
            raise ValueError(f"noise={noise}: the entries are integers; take noise=0 and a mask, or floating numbers")
        self._labels = checked_labels(labels, len(tensor))
        self.noise, self.mask = noise, mask
        self.describes = described(tuple(tensor.shape[1:]))

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), −1 where unknown, or None."""
        return self._labels

    def read(self, rows: Tensor, seeds: Tensor | None) -> Tensor:
        """Views of rows (n,): float32 or int64 (n, ...). Raises IndexError for a row that is none."""
        found = self._read(rows)
        if seeds is not None and self.noise + self.mask > 0:
            size = max(1, BLOCK // (3 * found[0].numel())) if len(found) else 1
            for part, of in zip(found.flatten(1).split(size), seeds.split(size)):
                self._disturb(part, of)
        return found

    def raw(self, rows: Tensor) -> Tensor:
        """The entries of rows (n,), float32 (n, F)."""
        return self._read(rows).flatten(1).float()

    def _read(self, rows: Tensor) -> Tensor:
        found = self._rows[rows] if isinstance(self._rows, Tensor) else torch.from_numpy(self._rows[rows.numpy()])
        if found.is_complex() or found.dtype == torch.bool:
            raise ValueError(f"tensor: holds {found.dtype}; expected floating or integer numbers")
        return found.to(torch.float32 if found.is_floating_point() else torch.int64)

    def _disturb(self, rows: Tensor, seeds: Tensor) -> None:
        """The view of rows (n, F), in place. Normals are computed in float64 and rounded."""
        width, half = rows.shape[1], -(-rows.shape[1] // 2)
        u = seeded_uniforms(seeds, 2 * half + width)
        if self.noise > 0:
            first, second = u[:, : 2 * half].double().numpy().reshape(len(u), 2, half).swapaxes(0, 1)
            radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * math.pi * second
            normal = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)), 1)[:, :width]
            rows += torch.from_numpy(normal * self.noise).float()
        rows.masked_fill_(u[:, 2 * half :] < self.mask, 0)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: a mapped file by its name."""
        mapped = isinstance(self._rows, np.memmap)
        return {**vars(self), "_rows": str(self._rows.filename)} if mapped else vars(self).copy()  # type: ignore[union-attr]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self._rows, str):
            self._rows = np.load(self._rows, mmap_mode="r")


@checked
def tensors(
    path: str,
    *,
    key: str | None = None,
    labels: str | None = None,
    holdout: Annotated[float, Ge(0), Le(0.9)] = 0.2,
    noise: Annotated[float, Ge(0)] = 0.0,
    mask: Share = 0.2,
) -> Splits:
    """Rows of a tensor in a file, under noise and masks.

    Args:
        path: .npy (read row by row where it lies), .npz, .safetensors or .pt, (N, ...) floating or integer.
        key: name of the tensor, in a file of several.
        labels: .npy file of integer classes (N,), negative where unknown; for evaluation only.
        holdout: share of the rows held out, the same for every run; 0 for none.
        noise: standard deviation of Gaussian noise on floating entries.
        mask: share of entries that are set to zero.

    Raises:
        ValueError: for a file that cannot be read, or holds something else; it is named.
    """
    classes = None if labels is None else read_labels(labels)
    try:
        data = TensorData(opened(path, key), labels=classes, noise=noise, mask=mask)
    except ValueError as error:
        raise ValueError(f"path={path}: {error}") from error
    names = () if classes is None else tuple(str(each) for each in range(int(classes.max()) + 1))
    if holdout == 0:
        return Splits(data, None, names)
    kept, held = stratified(torch.zeros(len(data)), holdout, HOLDOUT_SEED)
    return Splits(Subset(data, kept), Subset(data, held), names)


def opened(path: str, key: str | None = None) -> Tensor | np.ndarray:
    """The tensor of a file.

    Raises:
        ValueError: saying what the file is instead.
    """
    suffix = Path(path).suffix
    try:
        if suffix in (".npy", ".npz"):
            found: Any = np.load(path, mmap_mode="r" if suffix == ".npy" else None, allow_pickle=False)
        elif suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        elif suffix in (".pt", ".pth"):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            raise ValueError(f"ends in {suffix or 'nothing'}; expected .npy, .npz, .safetensors or .pt")
        if isinstance(found, Mapping):
            if key is None and len(found) > 1:
                raise ValueError(f"holds {', '.join(sorted(found))}; choose one by key")
            if key is not None and key not in found:
                raise ValueError(f"key={key} is not in it; it holds {', '.join(sorted(found))}")
            found = found[next(iter(found)) if key is None else key]
    except ValueError:
        raise
    except Exception as error:  # torch, zip and safetensors have each their own for bytes that are something else
        raise ValueError(f"not readable ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if not isinstance(found, Tensor | np.ndarray):
        raise ValueError(f"holds a {type(found).__name__}; expected a tensor")
    if isinstance(found, np.ndarray) and found.dtype.kind not in "fiu":
        raise ValueError(f"holds {found.dtype}; expected floating or integer numbers")
    return found


def read_labels(path: str, name: str = "labels") -> Tensor:
    """The integers (N,) of an .npy file, as int64; errors call it by the option's `name`.

    Raises:
        ValueError: for a file that is none, or of anything else.
    """
    remedy = "give an .npy file of integer labels (N,), as numpy.save writes it"
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{name}={path}: not readable ({error}); {remedy}") from None
    if not isinstance(found, np.ndarray):
        found.close()
        raise ValueError(f"{name}={path}: an archive of arrays; {remedy}")
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise ValueError(f"{name}={path}: holds {found.dtype} of shape {found.shape}; {remedy}")
    return torch.from_numpy(found.astype(np.int64))


def described(shape: tuple[int, ...]) -> dict[str, Any]:
    """What inputs of a shape tell encoders: it, and of (C, H, W) the channels."""
    return {"shape": shape, "channels": shape[0]} if len(shape) == 3 else {"shape": shape}
