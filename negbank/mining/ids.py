"""The user's ids of rows: integers or strings, in any order, each once. Inside the miner a row is its position."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MISSING = -1
"""Position of an id that no row has."""


class Ids:
    """ids of `count` rows ↔ positions 0..count−1.

    Args:
        values: (count,) distinct integers or strings; None for 0..count−1.
        count: number of rows.
        name: of the argument, for errors.

    Raises:
        ValueError: for another length, ids that are neither integers nor strings, or an id that comes twice.
    """

    def __init__(self, values: Sequence[int] | Sequence[str] | np.ndarray | Tensor | None, count: int, name: str):
        self.name, self.count = name, count
        self.values: np.ndarray | None = None
        self.rank: np.ndarray | None = None  # (count,) place of each row's id in ascending order; None when ascending
        self._sorted: np.ndarray | None = None
        self._order: np.ndarray | None = None
        if values is None:
            return
        array = as_ids(values, name)
        if array.shape != (count,):
            raise ValueError(f"{name}: shape {array.shape} for {count} rows; give one id a row")
        order = np.argsort(array, kind="stable")
        ascending = array[order]
        again = np.flatnonzero(ascending[1:] == ascending[:-1])
        if len(again):
            raise ValueError(
                f"{name}: {len(again)} id(s) come more than once, such as {ascending[again][:4].tolist()}; "
                f"an id names one row, so drop the duplicates or number the rows"
            )
        self.values, self._sorted, self._order = array, ascending, order
        if not np.array_equal(order, np.arange(count)):
            self.rank = np.empty(count, dtype=np.int64)
            self.rank[order] = np.arange(count)

    def __len__(self) -> int:
        return self.count

    def positions(self, wanted: np.ndarray) -> np.ndarray:
        """Position of every wanted id, `MISSING` where no row has it: int64 of the same shape."""
        if self._sorted is None or self._order is None:
            if wanted.dtype.kind not in "iu":
                return np.full(wanted.shape, MISSING)
            return np.where((wanted >= 0) & (wanted < self.count), wanted, MISSING).astype(np.int64)
        if (wanted.dtype.kind == "U") != (self._sorted.dtype.kind == "U") or not self.count:
            return np.full(wanted.shape, MISSING)
        at = np.searchsorted(self._sorted, wanted).clip(max=self.count - 1)
        return np.where(self._sorted[at] == wanted, self._order[at], MISSING)

    def of(self, positions: np.ndarray) -> np.ndarray:
        """The ids of rows at positions."""
        return positions.astype(np.int64) if self.values is None else self.values[positions]

    def keys(self, positions: np.ndarray) -> np.ndarray:
        """64 bits that stand for each row's id in a hash, whatever the order of the rows: uint64."""
        if self.values is None or self.values.dtype.kind != "U":
            return self.of(positions).astype(np.int64).view(np.uint64)
        distinct, back = np.unique(positions, return_inverse=True)
        hashed = [hashlib.blake2b(str(i).encode(), digest_size=8).digest() for i in self.values[distinct]]
        return np.frombuffer(b"".join(hashed), dtype=np.uint64)[back].reshape(positions.shape)


def as_ids(values: Sequence[int] | Sequence[str] | np.ndarray | Tensor, name: str) -> np.ndarray:
    """Ids as an int64 or a string array.

    Raises:
        ValueError: for floats, booleans, or mixed types.
    """
    array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64) if array.dtype.kind == "f" else array
    if array.dtype.kind == "O" and all(isinstance(i, str) for i in array.flat):
        array = array.astype(str)
    if array.dtype.kind == "U" and not isinstance(values, np.ndarray) and not all(isinstance(i, str) for i in values):
        raise ValueError(f"{name}: integers and strings mixed; give ids of one type")
    if array.dtype.kind not in "iuU":
        raise ValueError(f"{name}: ids of type {array.dtype}; expected integers or strings")
    return array if array.dtype.kind == "U" else array.astype(np.int64)
