"""The rows of every cell that an anchor may draw: counted exactly, and drawn uniformly without rejection.

    D_ic = {j ∈ D_i : c(j) = c},      n_i(c) = |D_ic| = size_c − |group(i) ∩ c| − |listed in c|

Allowed rows are sorted by (cell, group): a cell is an interval of positions, and a group inside of a cell is one, too.
For an anchor the positions without its group and without the few rows it skips number its rows cell by cell, so the
t-th row of a cell is found by the sorted-gap rule and one shift. No work that grows with N per call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.bank import NO_ROW
from negbank.exclusions import NO_GROUP, NOWHERE, Exclusions
from negbank.index import Cells
from negbank.index.contract import NO_CELL
from negbank.proposals.contract import of_anchors


class CellRows:
    """The layout of all allowed rows by (cell, group).

    Args:
        cells: a partition of the indexed rows.
        exclude: what may not be drawn.

    Attributes:
        order: (n + 1,) rows by position, with a `NO_ROW` behind the last.
        bounds: (C + 1,) positions where each cell starts and the last one ends.
        sizes: (C,) float64 rows of each cell.
        empty: the cells without any.
    """

    def __init__(self, cells: Cells, exclude: Exclusions) -> None:
        self.cells, self._exclude = cells, exclude
        self._every, self._group = exclude.by_group()
        rows = self._every[cells.assignment[self._every] >= 0]
        num_rows, device = exclude.num_rows, rows.device
        keys, at = (cells.assignment[rows] * num_rows + self._group[rows]).sort(stable=True)
        self.order = torch.cat((rows[at], rows.new_full((1,), NO_ROW)))
        self._position = torch.full((num_rows,), NOWHERE, device=device)
        self._position[self.order[:-1]] = torch.arange(len(rows), device=device)
        self.bounds = torch.searchsorted(keys, torch.arange(len(cells.sizes) + 1, device=device) * num_rows)
        self.sizes = self.bounds.diff().double()
        self.empty = (self.sizes == 0).nonzero().flatten()
        # The distinct (cell, group) pairs, grouped by group: where each starts, and how many rows it has.
        pairs, sizes = keys.unique_consecutive(return_counts=True)
        group, at = (pairs % num_rows).sort(stable=True)
        self._pair_cell, self._pair_size = (pairs // num_rows)[at], sizes[at]
        self._pair_start = (sizes.cumsum(0) - sizes)[at]
        self._offsets = torch.searchsorted(group, torch.arange(num_rows + 1, device=device))

    def of(self, rows: Tensor) -> AnchorCells:
        """For anchors of rows (A,)."""
        cells, device = len(self.cells.sizes), rows.device
        group = torch.where(rows == NO_ROW, NO_GROUP, self._group[rows.clamp(min=0)])
        first = torch.where(group < 0, 0, self._offsets[group.clamp(min=0)])
        last = torch.where(group < 0, 0, self._offsets[group.clamp(min=0) + 1])
        at = first[:, None] + torch.arange(int((last - first).max()) if len(rows) else 0, device=device)
        inside, at = at < last[:, None], at.clamp(max=max(0, len(self._pair_cell) - 1))
        cell = torch.where(inside, self._pair_cell[at], cells)
        size, start = torch.where(inside, self._pair_size[at], 0), torch.where(inside, self._pair_start[at], 0)
        listed = self._exclude.listed(rows)
        ids = torch.where(listed < len(self._every), self._every[listed.clamp(max=len(self._every) - 1)], NO_ROW)
        skips = torch.where(ids < 0, NOWHERE, self._position[ids.clamp(min=0)])
        return AnchorCells(self, cell, size, start, skips)


class AnchorCells:
    """The rows of A anchors by cell.

    Only few cells differ between anchors: those that hold rows of its group, or that it skips. All others have as many
    rows for one anchor as for another, so that (A, C) counts are never formed.

    Args:
        layout: the positions of all allowed rows.
        group_cell, group_size, group_start: (A, P) the cells that hold rows of an anchor's group, ascending and padded
            by C, how many of them, and the position they start at.
        skips: (A, E) further positions that may not be drawn, outside the group; `NOWHERE` pads.
    """

    def __init__(
        self, layout: CellRows, group_cell: Tensor, group_size: Tensor, group_start: Tensor, skips: Tensor
    ) -> None:
        self._layout = layout
        bounds, far = layout.bounds, 2 * len(layout.order)
        end = group_cell.new_full((len(group_cell), 1), len(bounds) - 1)  # one more cell, for padding
        self._group_cell = torch.cat((group_cell, end), 1)
        self._group_size = torch.cat((group_size, torch.zeros_like(end)), 1)
        self._group_start = torch.cat((group_start, torch.zeros_like(end)), 1)
        self._group_before = self._group_size.cumsum(1) - self._group_size
        self._skips = skips = torch.where(skips < 0, far, skips).sort(1).values
        cell = torch.searchsorted(bounds, skips, right=True) - 1  # C where padded
        before, size, start = self._group(cell)
        within = torch.where(skips > start, size, 0)
        gaps = skips - before - within - torch.arange(skips.shape[1], device=skips.device)
        self._gaps = torch.where(skips == far, far, gaps)
        self._touched = torch.cat((group_cell, cell), 1).clamp(max=len(bounds) - 2)
        self._counts = self.counts(self._touched)

    def counts(self, cell: Tensor) -> Tensor:
        """n_i(c) of cells (A, n)."""
        bounds = self._layout.bounds
        first, last = bounds[cell], bounds[cell + 1]
        rows = last - first - self._group(cell)[1]
        if not self._skips.shape[1]:
            return rows
        return rows - torch.searchsorted(self._skips, last) + torch.searchsorted(self._skips, first)

    def mask_(self, logits: Tensor) -> Tensor:
        """logits (A, C), −∞ from now on where n_i(c) = 0."""
        logits[:, self._layout.empty] = -torch.inf
        kept = torch.where(self._counts == 0, -torch.inf, logits.gather(1, self._touched))
        return logits.scatter_(1, self._touched, kept)

    def mass(self, of_row: Tensor, out: Tensor) -> None:
        """n_i(c) times of_row (A, C), exactly, into `out` (A, C) float64."""
        torch.mul(of_row, self._layout.sizes, out=out)
        out.scatter_(1, self._touched, self._counts * of_row.gather(1, self._touched).double())

    def _group(self, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of cells (A, n): rows of the anchor's group in cells before, in this one, and the position of the latter."""
        at = torch.searchsorted(self._group_cell, cell)
        here = self._group_cell.gather(1, at) == cell
        size = torch.where(here, self._group_size.gather(1, at), 0)
        return self._group_before.gather(1, at), size, self._group_start.gather(1, at)

    def pick(self, cell: Tensor, within: Tensor) -> Tensor:
        """The ids (A, n) of rows of cells (A, n), by uniforms (A, n) in [0, 1); of no meaning where a cell has none."""
        first = self._layout.bounds[cell]
        before, size, start = self._group(cell)
        place = first - before + (within * self.counts(cell)).long()
        if self._gaps.shape[1]:
            place = place - torch.searchsorted(self._skips, first)
            place = place + torch.searchsorted(self._gaps, place, right=True)
        place = place + before
        place = place + torch.where(place >= start, size, 0)
        return self._layout.order[place.clamp(max=len(self._layout.order) - 1)]

    def cell_of(self, ids: Tensor) -> Tensor:
        """The cell of rows ids (A, n), or `NO_CELL`."""
        return torch.where(ids < 0, NO_CELL, self._layout.cells.assignment[ids.clamp(min=0)])

    def __getitem__(self, anchors: slice) -> AnchorCells:
        """The rows of some of the anchors."""
        names = ("group_cell", "group_size", "group_start", "group_before", "skips", "gaps", "touched", "counts")
        return of_anchors(self, anchors, *(f"_{name}" for name in names))
