"""What may not be a negative: D_i, the rows that anchor i may be contrasted with.

    D_i = {0..N−1} − {i} − positives(i) − group(i) − forbidden

`Exclusions` answers three questions, batched over anchors and exactly: how large is D_i, is row j in it, and give me
uniform draws from it. It sorts the allowed rows by group once, so that a whole group is one interval of positions;
a handful of listed positives is skipped by the sorted-gap rule. No rejection, and no work that grows with N per call.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from negbank.arrays import NO_GROUP, as_labels, plain
from negbank.bank import NO_ROW, require_rows
from negbank.counter import uniforms
from negbank.links import Ids, as_links

NOWHERE = -1
"""Position of a row that is forbidden."""


class Exclusions:
    """The excluded rows of every anchor: itself, its known positives, its group, and rows forbidden to all.

    Args:
        num_rows: N.
        positives: pairs (anchor row, positive row) or lists by row, as `as_links` takes them; read as given, not
            mirrored.
        groups: (N,) labels, integers or strings; rows of one are never negatives of each other. A negative integer is
            no group.
        forbidden: (N,) bool; rows that are nobody's negative.

    Raises:
        ValueError: for shapes, dtypes or ids that do not fit, or when some row is left without a single negative.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        positives: Any = None,
        groups: Any = None,
        forbidden: Any = None,
    ) -> None:
        if isinstance(num_rows, bool) or not hasattr(num_rows, "__index__") or num_rows < 1:
            raise ValueError(f"num_rows={num_rows!r}: expected the number of rows, at least 1")
        self.num_rows = num_rows = operator.index(num_rows)
        labels = self._labels(groups)
        allowed = torch.ones(num_rows, dtype=torch.bool)
        if forbidden is not None:
            mask = plain(forbidden, "forbidden")
            if mask.shape != (num_rows,) or mask.dtype != np.bool_:
                raise ValueError(f"forbidden: {mask.dtype} {mask.shape}, expected bool ({num_rows},)")
            allowed &= torch.from_numpy(~mask)
        # Positions: the allowed rows, sorted by group. A group is then the interval [start, start + size).
        rows = allowed.nonzero().flatten()
        self._order = rows[torch.argsort(labels[rows], stable=True)]
        self._position = torch.full((num_rows,), NOWHERE, dtype=torch.int64)
        self._position[self._order] = torch.arange(len(self._order))
        ordered = labels[self._order].contiguous()
        self._start = torch.searchsorted(ordered, labels)
        self._size = torch.searchsorted(ordered, labels, right=True) - self._start
        self._offsets, self._listed = self._skips(positives)
        self._moved: dict[torch.device, Exclusions] = {}
        self._self_only = positives is None and groups is None and forbidden is None
        short = (self.count(torch.arange(num_rows)) < 1).nonzero().flatten()
        if len(short):
            raise ValueError(
                f"num_rows={num_rows}: rows {short.tolist()[:8]} have no allowed negative left; "
                f"use more rows, smaller groups or fewer positives"
            )

    def _labels(self, groups: Any) -> Tensor:
        """Group labels in which a row without a group is a group of its own, so that the self is always excluded."""
        alone = torch.arange(self.num_rows)
        if groups is None:
            return alone
        (labels,) = as_labels([*groups] if isinstance(groups, tuple) else groups, "groups")
        if labels.shape != (self.num_rows,):
            raise ValueError(f"groups: {len(labels)} labels, expected integers or strings ({self.num_rows},)")
        numbered = np.unique(labels, return_inverse=True)[1]
        return torch.where(torch.from_numpy(labels < 0), self.num_rows + alone, torch.from_numpy(numbered))

    def _skips(self, positives: Any) -> tuple[Tensor, Tensor]:
        """CSR of listed positives: offsets (N+1,), positions (P,) sorted per row, each outside the row's own group."""
        pairs = torch.zeros(0, 2, dtype=torch.int64)
        if positives is not None:
            rows = Ids(None, self.num_rows, "rows")
            pairs = torch.from_numpy(np.stack(as_links(positives, "positives", rows, rows), 1))
        anchor, position = pairs[:, 0], self._position[pairs[:, 1]]
        inside = (position >= self._start[anchor]) & (position < self._start[anchor] + self._size[anchor])
        keep = (position != NOWHERE) & ~inside
        pairs = torch.stack((anchor[keep], position[keep]), 1).unique(dim=0)  # sorted by row, then position
        offsets = torch.zeros(self.num_rows + 1, dtype=torch.int64)
        offsets[1:] = torch.bincount(pairs[:, 0], minlength=self.num_rows).cumsum(0)
        return offsets, pairs[:, 1].contiguous()

    def to(self, device: torch.device) -> Exclusions:
        """The same exclusions with their tables on `device`, moved once; the object itself when they are there."""
        if self._order.device == device:
            return self
        if device not in self._moved:
            moved = object.__new__(Exclusions)
            moved.__dict__ = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}
            self._moved[device] = moved
        return self._moved[device]

    def count(self, rows: Tensor) -> Tensor:
        """|D_i| for anchors of rows (A,); for `NO_ROW` nothing but `forbidden` is out.

        Raises:
            ValueError: for a row that is neither of the data set nor `NO_ROW`, here and in `allowed` and `uniform`.
        """
        require_rows(rows, self.num_rows, outside=True)
        if self._self_only:
            return self.num_rows - (rows != NO_ROW).long()
        own = rows.clamp(min=0)
        left = len(self._order) - self._size[own] - (self._offsets[own + 1] - self._offsets[own])
        return torch.where(rows == NO_ROW, len(self._order), left)

    def allowed(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Whether ids (A, n) lie in D_i of anchors rows (A,): (A, n) bool. `NO_ROW`, and what is no row, never does."""
        require_rows(rows, self.num_rows, outside=True)
        if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise ValueError(f"ids: {ids.dtype}, expected torch.int64")
        inside = (ids >= 0) & (ids < self.num_rows)
        if self._self_only:
            return (ids != rows[:, None]) & inside
        own = rows.clamp(min=0)[:, None]
        position = torch.where(inside, self._position[ids.clamp(0, self.num_rows - 1)], NOWHERE)
        start = self._start[own]
        grouped = (rows[:, None] != NO_ROW) & (position >= start) & (position < start + self._size[own])
        listed = self.listed(rows)
        if listed.shape[1]:
            at = torch.searchsorted(listed, position.contiguous()).clamp(max=listed.shape[1] - 1)
            grouped = grouped | (listed.gather(1, at) == position)
        return (position != NOWHERE) & ~grouped

    def listed(self, rows: Tensor) -> Tensor:
        """Positions of the listed positives of anchors rows (A,): (A, E), ascending, padded at the end by 2N."""
        if self._self_only:
            return rows.new_empty(len(rows), 0)
        own = rows.clamp(min=0)
        start, stop = self._offsets[own], self._offsets[own + 1]
        stop = torch.where(rows == NO_ROW, start, stop)
        width = int((stop - start).max()) if len(rows) else 0
        at = start[:, None] + torch.arange(width, device=rows.device)
        if width == 0:
            return at
        return torch.where(at < stop[:, None], self._listed[at.clamp(max=len(self._listed) - 1)], 2 * self.num_rows)

    def by_group(self) -> tuple[Tensor, Tensor]:
        """The rows not forbidden in the order of positions (n,), and every row's group (N,) or `NO_GROUP`.

        A row that is not forbidden is in anchor i's group exactly if their numbers, in 0..N−1, agree.
        """
        return self._order, torch.where(self._size > 0, self._start, NO_GROUP)

    def uniform(self, rows: Tensor, n: int, *, generator: torch.Generator | None) -> Tensor:
        """n independent uniform draws from D_i for every anchor of rows (A,): (A, n) ids."""
        own, outside = rows.clamp(min=0), rows == NO_ROW
        # Below 2^53 a float64 uniform times |D_i| hits every row with a bias of less than |D_i| / 2^53.
        draws = uniforms((len(rows), n), generator=generator, device=rows.device)
        at = (draws * self.count(rows)[:, None]).long()
        if self._self_only:
            return at + ((at >= rows[:, None]) & ~outside[:, None])
        start = torch.where(outside, 0, self._start[own])[:, None]
        size = torch.where(outside, 0, self._size[own])[:, None]
        listed = self.listed(rows)
        if listed.shape[1]:  # positions with the group's interval cut out, then the sorted-gap rule
            cut = torch.where(listed < start, listed, listed - size)
            gaps = (cut - torch.arange(cut.shape[1], device=rows.device)).contiguous()
            at = at + torch.searchsorted(gaps, at.contiguous(), right=True)
        return self._order[torch.where(at < start, at, at + size)]
