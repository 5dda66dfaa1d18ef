"""Tensors as data: spectra, sensor readings, embeddings of another model, anything of one shape a row.

A view of x adds Gaussian noise and sets entries to zero, both drawn from its seed (Box & Muller 1958):

    x + noise · √(−2 ln(1 − u)) · (cos, sin)(2π u')        then 0 where u'' < mask
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from negbank.bounds import Annotated, Ge, Input, Le, Share, checked
from negbank.counter import seeded_uniforms
from negbank.train.data.arrays import read, read_labels
from negbank.train.data.contract import Splits, checked_labels
from negbank.train.data.holdout import with_holdout

MOST_NAMES = 1 << 20
"""Classes that get names: labels may be ids, which have gaps."""
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
        if isinstance(self._rows, Tensor):
            found = self._rows[rows]
            if found.is_complex() or found.dtype == torch.bool:
                raise ValueError(f"tensor: holds {found.dtype}; expected floating or integer numbers")
            return found.to(torch.float32 if found.is_floating_point() else torch.int64)
        array = np.asarray(self._rows[rows.numpy()])
        if array.dtype.kind not in "fiu":
            raise ValueError(f"tensor: holds {array.dtype}; expected floating or integer numbers")
        return torch.from_numpy(np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else np.int64))

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
    path: Annotated[str, Input()],
    *,
    key: str | None = None,
    labels: Annotated[str | None, Input()] = None,
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
        data = TensorData(read(path, key), labels=classes, noise=noise, mask=mask)
    except ValueError as error:
        raise ValueError(f"path={path}: {error}") from error
    highest = -1 if classes is None else int(classes.max())
    names = tuple(str(each) for each in range(highest + 1)) if highest < MOST_NAMES else ()
    return with_holdout(data, holdout, names)


def described(shape: tuple[int, ...]) -> dict[str, Any]:
    """What inputs of a shape tell encoders: it, and of (C, H, W) the channels."""
    return {"shape": shape, "channels": shape[0]} if len(shape) == 3 else {"shape": shape}
