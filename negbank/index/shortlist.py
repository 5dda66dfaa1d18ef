"""Every column that can be among the k best of a row, from products that are near its scores, and few others.

With p the products, v their k-th largest, and |p − s| ≤ ε up to a constant of the row, k columns have s ≥ v − ε. A
column among the k best by score has no less, so that

    p ≥ v − 2ε          (products stored in bfloat16:  p ≥ ⌊v − 2⁻⁸ |v| − 2ε⌋, as rounding keeps their order)

The scores of this shortlist then decide, ties by id: the result is that of scoring every column.

On the CPU a compiled loop reads tiles of products, in any order, against a gate for every row, which rises with the
k-th largest product seen so far. It tests 128 columns at a time, and looks closer only where one of them passes. On
other devices, for a whole row of products at once: the maxima of blocks of columns first, then only the blocks that can
hold a column of the shortlist.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

SPAN = 128
"""Columns tested at once."""


def room(k: int, columns: int) -> int:
    """Columns that a row's shortlist has room for while it is filled; most end up with little more than k."""
    return min(2 * k + 256, columns + SPAN)


class Shortlist:
    """The shortlists of R rows, filled tile by tile, on the CPU.

    Products are read as integers: of two numbers that are not negative the larger has the larger bits. Those of −∞ are
    passed over.

    Args:
        k: at most the columns that each row will be shown.
        slack: (R,) float32, 2ε of each row.
        dtype: of the products, torch.bfloat16 or torch.float32.
        columns: how many columns there are in all.
        most: columns that a row's shortlist has room for; `room` by default.
    """

    devices = ("cpu",)
    """Where shortlists are filled by tiles; on others, `shortlist` makes them at once."""

    def __init__(self, k: int, slack: Tensor, dtype: torch.dtype, columns: int, most: int | None = None) -> None:
        self._k, self._slack = k, slack.numpy()
        self._bits = torch.int16 if dtype == torch.bfloat16 else torch.int32
        kind = np.dtype(np.int16 if dtype == torch.bfloat16 else np.int32)
        self._never = (1 << (8 * kind.itemsize - 1)) - 1
        shape = len(slack), most or room(k, columns)
        self._gate = np.full(shape[0], -self._never - 1, kind)
        self._count = np.zeros(shape[0], np.int32)
        self._full = np.full(shape[0], room(k, columns) - SPAN, np.int32)
        self._values, self._columns = np.empty(shape, kind), np.empty(shape, np.int32)

    def add(self, rows: slice, tile: Tensor, ids: np.ndarray, own: np.ndarray, mirror: slice | None = None) -> None:
        """Show the rows (r of them) a tile of products (≥ r, ≥ c) with columns ids (c,) int32, all but their own (r,).

        `mirror`: c other rows of this list, whose own ids are `ids`, which are shown the transposed tile as well.
        """
        bits, theirs = tile.view(self._bits).numpy(), slice(0, 0) if mirror is None else mirror
        gates = np.full(len(ids), self._never, self._gate.dtype)
        _add(
            bits, ids, own, self._k, gates if mirror is None else self._gate[theirs], *self._of(rows), *self._of(theirs)
        )

    def take(self, rows: slice) -> Tensor:
        """The shortlists of the rows: (r, w ≥ k) long ids, padded with −1; of no id where there was no room for all."""
        gate, slack, count, full, values, columns = self._of(rows)
        _finish(self._k, gate, slack, count, full, values, columns)
        width = int(count.max(initial=self._k))
        ids = columns[:, :width].astype(np.int64)
        ids[np.arange(width) >= count[:, None]] = -1
        return torch.from_numpy(ids)

    def products(self, rows: slice) -> np.ndarray:
        """The products of the columns that `take` gave: (r, w) float32, padded with −∞."""
        count, values = self._count[rows], self._values[rows]
        kept = values[:, : int(count.max(initial=self._k))]
        bits = torch.from_numpy(np.where(kept < 0, kept ^ self._never, kept))
        products = bits.view(torch.bfloat16 if self._bits == torch.int16 else torch.float32).to(torch.float32).numpy()
        products[np.arange(kept.shape[1]) >= count[:, None]] = -np.inf
        return products

    def given_up(self, rows: slice) -> np.ndarray:
        """For which rows (r,) bool there was no room."""
        return np.asarray(self._gate[rows] == self._never)

    def _of(self, rows: slice) -> tuple[np.ndarray, ...]:
        """gate: what a product must not be less than; count: of columns held; full: when to raise the gate."""
        state = self._gate, self._slack, self._count, self._full, self._values, self._columns
        return tuple(array[rows] for array in state)


@numba.njit(cache=True, nogil=True)
def _add(
    tile: np.ndarray,
    ids: np.ndarray,
    own: np.ndarray,
    k: int,
    gates: np.ndarray,
    gate: np.ndarray,
    slack: np.ndarray,
    count: np.ndarray,
    full: np.ndarray,
    values: np.ndarray,
    columns: np.ndarray,
    other_gate: np.ndarray,
    other_slack: np.ndarray,
    other_count: np.ndarray,
    other_full: np.ndarray,
    other_values: np.ndarray,
    other_columns: np.ndarray,
) -> None:
    width, hits, passed = len(ids), np.empty(SPAN, np.int32), np.empty(-(-len(ids) // SPAN), np.int8)
    flags = np.zeros(SPAN, np.int8)
    words = flags.view(np.int64)
    sign, highest = 8 * tile.itemsize - 1, np.iinfo(tile.dtype).max
    nothing = -128 if tile.itemsize == 2 else -(128 << 16)  # −∞, which bits put first among the negative numbers
    for r in range(len(own)):
        row = tile[r, :width]
        if count[r] == 0 and width > k:
            _open(r, row, k, gate, slack)
        _test(row, gate[r], gates, passed)
        for span in range(len(passed)):
            if passed[span] == 0:
                continue
            at = span * SPAN
            some, limits = row[at : at + SPAN], gates[at : at + SPAN]
            if passed[span] & 1:
                if count[r] > full[r]:
                    _shrink(r, k, k // 16, gate, slack, count, full, values, columns)
                limit, held = gate[r], count[r]
                for c in range(len(some)):
                    flags[c] = some[c] >= limit
                flags[len(some) :] = 0
                for word in range(len(words)):
                    if words[word] == 0:
                        continue
                    for c in range(8 * word, 8 * word + 8):
                        if flags[c] and ids[at + c] != own[r] and some[c] != nothing:
                            values[r, held] = some[c] ^ ((some[c] >> sign) & highest)
                            columns[r, held] = ids[at + c]
                            held += 1
                count[r] = held
            if passed[span] & 2:
                number = 0
                for c in range(len(some)):
                    hits[number] = c
                    number += some[c] >= limits[c]
                for c in hits[:number]:
                    j = at + c
                    if other_count[j] > other_full[j]:
                        _shrink(
                            j, k, k // 16, other_gate, other_slack, other_count, other_full, other_values, other_columns
                        )
                        if some[c] < other_gate[j]:
                            continue
                    other_values[j, other_count[j]] = some[c] ^ ((some[c] >> sign) & highest)
                    other_columns[j, other_count[j]] = own[r]
                    other_count[j] += 1


@numba.njit(cache=True, nogil=True)
def _test(row: np.ndarray, limit: int, limits: np.ndarray, passed: np.ndarray) -> None:
    """Of each SPAN products: 1 if any is not less than the limit, plus 2 if any is not less than its own limit."""
    for span in range(len(passed)):
        some, own = row[span * SPAN : span * SPAN + SPAN], limits[span * SPAN : span * SPAN + SPAN]
        by_row, by_column = len(some) < SPAN, len(some) < SPAN
        if not by_row:
            for c in range(SPAN):
                by_row |= some[c] >= limit
                by_column |= some[c] >= own[c]
        passed[span] = by_row + 2 * by_column


@numba.njit(cache=True, nogil=True)
def _open(r: int, row: np.ndarray, k: int, gate: np.ndarray, slack: np.ndarray) -> None:
    """Set the gate of row r by the first tile it is shown: k + 1 columns, in case its own is one of them."""
    if _at_least(row, 0) > k:
        least = _least(_kth_largest(row, k + 1, k // 16), slack[r], 16 if row.itemsize == 2 else 0)
        gate[r] = max(gate[r], least) if least >= 0 else gate[r]


@numba.njit(cache=True, nogil=True)
def _shrink(
    r: int,
    k: int,
    spare: int,
    gate: np.ndarray,
    slack: np.ndarray,
    count: np.ndarray,
    full: np.ndarray,
    values: np.ndarray,
    columns: np.ndarray,
) -> None:
    """Raise the gate of row r to what its k-th largest product says, and drop what does not pass it.

    Where nearly all pass, there is no room for what may come: the list is given up, and its gate let nothing pass.
    """
    least = _least(_kth_largest(values[r, : count[r]], k, spare), slack[r], 16 if values.itemsize == 2 else 0)
    if least >= 0:
        gate[r] = max(gate[r], least)
    kept, most = 0, values.shape[1] - SPAN
    for c in range(count[r]):
        value = values[r, c]
        values[r, kept], columns[r, kept] = value, columns[r, c]
        kept += value >= least
    if count[r] > most and kept > most - SPAN:
        gate[r], kept = np.iinfo(gate.dtype).max, 0
    count[r], full[r] = kept, min(most, kept + k // 4 + 16)


@numba.njit(cache=True, nogil=True)
def _least(kth: int, slack: float, shift: int) -> int:
    """⌊v − 2⁻⁸ |v| − 2ε⌋ of the integer kth, as such an integer."""
    highest = (1 << (31 - shift)) - 1
    product = np.int32((kth if kth >= 0 else kth ^ highest) << shift).view(np.float32)
    limit = np.float32(product - (abs(product) * 2.0**-8 if shift else 0.0) - slack)
    bits = limit.view(np.int32) >> shift
    return int(bits if limit >= 0 else (bits ^ highest) - 1)


@numba.njit(cache=True, nogil=True)
def _kth_largest(values: np.ndarray, k: int, spare: int) -> int:
    """The k-th largest, or one less than it that at most k + spare are not less than, by bisection."""
    low, high = values[0], values[0]
    for c in range(len(values)):  # by number: a loop over the values themselves is not vectorised
        low, high = min(low, values[c]), max(high, values[c])
    least, most, number = int(low), int(high) + 1, len(values)
    while most - least > 1 and number > k + spare:
        middle = (least + most) // 2
        passing = _at_least(values, middle)
        if passing >= k:
            least, number = middle, passing
        else:
            most = middle
    return least


@numba.njit(cache=True, nogil=True)
def _at_least(values: np.ndarray, limit: int) -> int:
    least, number = values.dtype.type(limit), 0
    for c in range(len(values)):
        number += values[c] >= least
    return number


@numba.njit(cache=True, nogil=True)
def _finish(
    k: int,
    gate: np.ndarray,
    slack: np.ndarray,
    count: np.ndarray,
    full: np.ndarray,
    values: np.ndarray,
    columns: np.ndarray,
) -> None:
    for r in range(len(count)):
        if count[r] > k:
            _shrink(r, k, 0, gate, slack, count, full, values, columns)


def shortlist(products: Tensor, k: int, slack: Tensor) -> Tensor:
    """The shortlist of every row of products (B, M), k ≤ M: columns (B, w) long, padded with −1, on any device.

    Args:
        slack: (B,), 2ε of each row.
    """
    columns = products.shape[1]
    block = 1 << max(0, round(math.log2(columns / k) / 2))  # about as many maxima as columns of the blocks opened
    if products.dtype != torch.float32:
        products = products.to(torch.float32)
    blocks = torch.nn.functional.pad(products, (0, -columns % block), value=-torch.inf).unflatten(1, (-1, block))
    maxima = blocks.amax(2) if block > 1 else blocks[:, :, 0]
    if maxima.shape[1] > k:
        least = maxima.topk(k, dim=1).values[:, -1:] - slack[:, None]  # k columns are at least the k-th maximum
        opened = maxima.topk(int((maxima >= least).sum(1).max()), dim=1).indices
        blocks = blocks.gather(1, opened[:, :, None].expand(-1, -1, block))
    else:
        opened = torch.arange(maxima.shape[1], device=products.device).expand(len(products), -1)
    inside = blocks.flatten(1)
    least = inside.topk(k, dim=1).values[:, -1:] - slack[:, None]
    best = inside.topk(int((inside >= least).sum(1).max()), dim=1)
    found = opened.gather(1, best.indices // block) * block + best.indices % block
    return found.masked_fill_(best.values < least, -1)
