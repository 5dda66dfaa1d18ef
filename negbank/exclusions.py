"""What may not be a negative: D_i, the rows that anchor i may be contrasted with.

    D_i = {0..N−1} − {i} − positives(i) − group(i) − forbidden

`Exclusions` answers three questions, batched over anchors and exactly: how large is D_i, is row j in it, and give me
uniform draws from it. It sorts the allowed rows by group once, so that a whole group is one interval of positions;
a handful of listed positives is skipped by the sorted-gap rule. No rejection, and no work that grows with N per call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from negbank.bank import NO_ROW, require_rows
from negbank.counter import uniforms

NOWHERE = -1
"""Position of a row that is forbidden."""
NO_GROUP = -1
"""Group of a row that shares one with no row that may be drawn."""


class Exclusions:
    """The excluded rows of every anchor: itself, its known positives, its group, and rows forbidden to all.

    Args:
        num_rows: N.
        positives: (P, 2) long pairs (anchor row, positive row), or a list of N id lists; read as given, not mirrored.
        groups: (N,) integer labels; rows of one label are never negatives of each other. A negative label is no group.
        forbidden: (N,) bool; rows that are nobody's negative.

    Raises:
        ValueError: for shapes, dtypes or ids that do not fit, or when some row is left without a single negative.
    """

    def __init__(
        self,
        num_rows: int,
        *,
        positives: Tensor | Sequence[Sequence[int]] | None = None,
        groups: Tensor | None = None,
        forbidden: Tensor | None = None,
    ) -> None:
        self.num_rows = num_rows
        labels = self._labels(groups)
        allowed = torch.ones(num_rows, dtype=torch.bool)
        if forbidden is not None:
            if forbidden.shape != (num_rows,) or forbidden.dtype != torch.bool:
                raise ValueError(f"forbidden: {forbidden.dtype} {tuple(forbidden.shape)}, expected bool ({num_rows},)")
            allowed &= ~forbidden.cpu()
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

    def _labels(self, groups: Tensor | None) -> Tensor:
        """Group labels in which a row without a group is a group of its own, so that the self is always excluded."""
        alone = torch.arange(self.num_rows)
        if groups is None:
            return alone
        if groups.shape != (self.num_rows,) or groups.dtype.is_floating_point or groups.dtype == torch.bool:
            raise ValueError(f"groups: {groups.dtype} {tuple(groups.shape)}, expected integers ({self.num_rows},)")
        groups = groups.cpu().to(torch.int64)
        return torch.where(groups < 0, groups.clamp(min=0).max() + 1 + alone, groups)

    def _skips(self, positives: Tensor | Sequence[Sequence[int]] | None) -> tuple[Tensor, Tensor]:
        """CSR of listed positives: offsets (N+1,), positions (P,) sorted per row, each outside the row's own group."""
        pairs = torch.zeros(0, 2, dtype=torch.int64)
        if isinstance(positives, Tensor):
            shape, kind = tuple(positives.shape), positives.dtype
            if positives.ndim != 2 or shape[1] != 2 or kind.is_floating_point or kind == torch.bool:
                raise ValueError(f"positives: {kind} {shape}, expected (P, 2) pairs of integers (anchor, positive)")
            pairs = positives.cpu().to(torch.int64)
        elif positives is not None:
            if len(positives) != self.num_rows:
                raise ValueError(f"positives: {len(positives)} lists for num_rows={self.num_rows}; give one per row")
            lengths = torch.tensor([len(ids) for ids in positives])
            flat = torch.tensor([j for ids in positives for j in ids], dtype=torch.int64)
            pairs = torch.stack((torch.arange(self.num_rows).repeat_interleave(lengths), flat), 1)
        if len(pairs) and (int(pairs.min()) < 0 or int(pairs.max()) >= self.num_rows):
            raise ValueError(
                f"positives: ids {int(pairs.min())}..{int(pairs.max())} are outside 0..{self.num_rows - 1}"
            )
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
        """Whether ids (A, n) lie in D_i of anchors rows (A,): (A, n) bool. `NO_ROW` never does."""
        require_rows(rows, self.num_rows, outside=True)
        if self._self_only:
            return (ids != rows[:, None]) & (ids >= 0)
        own = rows.clamp(min=0)[:, None]
        position = torch.where(ids >= 0, self._position[ids.clamp(min=0)], NOWHERE)
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
