"""What training asks of data: rows 0..N−1, each of which can be read under a random view.

    inputs = data.read(rows, seeds)        of row i a function of (rows[i], seeds[i]) alone, bit for bit
    inputs = data.read(rows, None)         as evaluation sees them

Row i is the same thing throughout. Since a view depends on its seed alone, a step's inputs can be read by any number of
workers or processes, and in pieces of any size. Data may say more, by attributes that not all have:

    collate(parts)     joins inputs where they are no tensors; see `collate`
    describes          {name: value} told to encoders that have an argument of this name; see `describes`
    raw(rows)          features that any encoder has to beat, such as pixels; see `raw`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

SUBSET_SEED = 0
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class Inputs(Protocol):
    """What an encoder is called with: a tensor, or anything else that can be moved."""

    def to(self, device: Any, *, non_blocking: bool = False) -> Any: ...


class Data(Protocol):
    """Rows that can be contrasted. For `data.workers` above 0 it has to be picklable."""

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), −1 where unknown, or None. Never used in training."""
        ...

    def __len__(self) -> int: ...

    def read(self, rows: Tensor, seeds: Tensor | None) -> Inputs:
        """One view of each of rows (n,) int64, on the CPU.

        Args:
            rows: may repeat.
            seeds: int64 (n,), of each view, or None for the view of evaluation.
        """
        ...


class Pairs(NamedTuple):
    """Row i of one side is the positive of row i of the other; rows of one group are no negatives of each other.

    Attributes:
        left, right: of equal length.
        groups: integer (N,), negative for none, or None.
    """

    left: Data
    right: Data
    groups: Tensor | None = None

    def some(self, rows: Tensor) -> Pairs:
        """The pairs of rows (n,), renumbered from 0."""
        groups = None if self.groups is None else self.groups[rows]
        return Pairs(Subset(self.left, rows), Subset(self.right, rows), groups)


class Splits(NamedTuple):
    """What a run trains on and is evaluated on, with the names of the classes that labels index, and notes for people:
    what was found and is not read."""

    train: Data | Pairs
    test: Data | Pairs | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def num_rows(data: Data | Pairs) -> int:
    """N, of data or of pairs."""
    return len(data.left) if isinstance(data, Pairs) else len(data)


def sides(data: Data | Pairs) -> tuple[Data, ...]:
    """The data of each tower: one, or left and right."""
    return (data.left, data.right) if isinstance(data, Pairs) else (data,)


def collate(data: Data, parts: Sequence[Any]) -> Any:
    """Inputs of `data` read in parts, as one: by its own `collate`, else by `torch.cat`."""
    if len(parts) == 1:
        return parts[0]
    own = getattr(data, "collate", None)
    return torch.cat(list(parts)) if own is None else own(parts)


def describes(data: Data) -> Mapping[str, Any]:
    """What `data` tells encoders by argument name, such as {"channels": 3}."""
    return getattr(data, "describes", {})


def raw(data: Data, rows: Tensor) -> Tensor | None:
    """Features (n, F) of rows (n,) that any encoder has to beat; None where the data has none."""
    own = getattr(data, "raw", None)
    return None if own is None else own(rows)


class Subset:
    """Some rows of other data, renumbered from 0.

    Args:
        data: the other.
        rows: int64 (n,), the rows to take, in the order they get.
    """

    def __init__(self, data: Data, rows: Tensor) -> None:
        self.data, self.rows = data, rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor | None:
        """int64 (n,), or None."""
        return None if self.data.labels is None else self.data.labels[self.rows]

    @property
    def describes(self) -> Mapping[str, Any]:
        """Those of the other data."""
        return describes(self.data)

    def read(self, rows: Tensor, seeds: Tensor | None) -> Any:
        """One view of each of rows (n,). Raises IndexError for a row that is not below n."""
        return self.data.read(self.rows[rows], seeds)

    def collate(self, parts: Sequence[Any]) -> Any:
        """As the other data."""
        return collate(self.data, parts)

    def raw(self, rows: Tensor) -> Tensor | None:
        """As the other data."""
        return raw(self.data, self.rows[rows])


def origin(data: Data) -> tuple[Any, Tensor]:
    """The data that this is some rows of, itself if it is all of them, and which rows (n,)."""
    rows = torch.arange(len(data))
    while isinstance(data, Subset):
        rows, data = data.rows[rows], data.data
    return data, rows


def subset(splits: Splits, rows: int | None = None) -> Splits:
    """`splits` with `rows` of the training rows, a random subset that is the same for every run; None: all.

    Raises:
        ValueError: for more rows than there are.
    """
    if rows is None:
        return splits
    count = num_rows(splits.train)
    if not 2 <= rows <= count:
        raise ValueError(f"data.rows={rows}: the data has {count} training rows; take 2..{count}")
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(SUBSET_SEED))[:rows].sort().values
    if isinstance(splits.train, Pairs):
        return splits._replace(train=splits.train.some(chosen))
    return splits._replace(train=Subset(splits.train, chosen))


def checked_labels(labels: Tensor | None, count: int, name: str = "labels") -> Tensor | None:
    """Labels as int64 (N,), or None.

    Raises:
        ValueError: for labels that are not integers, or not one a row.
    """
    if labels is None:
        return None
    if labels.dtype not in _INTEGERS:
        raise ValueError(f"{name} must be integers, got dtype {labels.dtype}; convert with labels.to(torch.int64)")
    if labels.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), one per row, got {tuple(labels.shape)}")
    return labels.to(torch.int64)
