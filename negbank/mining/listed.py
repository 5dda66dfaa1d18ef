"""The shortlists of a few queries among unit rows that are seen block by block, of any number of rows.

A product p = q̂·ĉ of rounded rows orders rows as the score s = q·c does, up to 2ε (index/shortlist.py). So that the gate
can work across blocks, ε is known before the first one: rows of length at most m, rounded to u of every element, are at
most u m away from what they were, and by Cauchy–Schwarz

    |p − s| ≤ |(q − q̂)·c| + |q̂·(c − ĉ)| + 3γ |q| m ≤ ε = m (|q − q̂| + u |q̂| + 3γ |q̂|)

with |q − q̂| as measured, u = 2⁻⁸ of bfloat16, and γ as in index/products.py; rows in float32 are not rounded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from negbank.index.products import UNIT, UNIT_BFLOAT16, lengths, rounds_float32
from negbank.index.shortlist import SPAN, Shortlist, shortlist
from negbank.mining.forbidden import Forbidden

LONGEST = 1 + 2.0**-6
"""m: a unit row, stored in float32 or less, and then rounded."""
TILE = 1 << 20
"""Products of a tile, which is to stay in a core's cache."""


def room(k: int, rows: int) -> int:
    """Rows that a shortlist has room for: many are nearly equal where embeddings crowd around one direction."""
    return min(4 * k + 512, rows + SPAN)


class Listed:
    """What may be among the k best allowed rows of a few queries, of the rows seen so far.

    Args:
        queries: (b, D) unit rows.
        numbers: (b,) their numbers in `forbidden`.
        dtype: of the products, torch.bfloat16 (on the CPU) or torch.float32.
        rows: how many there are in all.
    """

    def __init__(
        self, queries: Tensor, numbers: np.ndarray, k: int, dtype: torch.dtype, forbidden: Forbidden, rows: int
    ) -> None:
        self._left, self._mask = queries.to(dtype), forbidden.mask(numbers)
        kept, lost = lengths(self._left.to(torch.float32)), lengths(queries - self._left)
        coarse = 2 * UNIT_BFLOAT16 if dtype == torch.float32 and rounds_float32(queries.device) else 0.0
        away = UNIT_BFLOAT16 if dtype == torch.bfloat16 else coarse
        slack = 2 * LONGEST * (lost + (away + 3 * UNIT * (queries.shape[1] + 16)) * kept)
        tiled = queries.device.type in Shortlist.devices
        self._list: Shortlist | _Merged = (
            Shortlist(k, slack, dtype, rows, room(k, rows)) if tiled else _Merged(k, slack, rows)
        )
        self._columns = max(1024, TILE // len(queries) // 256 * 256) if tiled else rows
        self._nobody = np.full(len(queries), -1, np.int32)

    def see(self, start: int, rows: Tensor) -> None:
        """Rows start.. in the dtype of the products."""
        space = self._left.new_empty(len(self._left) * min(len(rows), self._columns))
        for at in range(0, len(rows), self._columns):
            columns = rows[at : at + self._columns]
            tile = space[: len(self._left) * len(columns)].view(len(self._left), -1)
            torch.mm(self._left, columns.T, out=tile)
            self._mask(tile, start + at)
            ids = np.arange(start + at, start + at + tile.shape[1], dtype=np.int32)
            self._list.add(slice(None), tile, ids, self._nobody)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions (b, w ≥ k), padded by −1, and their products."""
        positions = self._list.take(slice(None))
        return positions.cpu().numpy(), self._list.products(slice(None))

    @property
    def found(self) -> np.ndarray:
        """For which queries (b,) there was room for all, known after `take`."""
        return ~self._list.given_up(slice(None))


class _Merged:
    """A `Shortlist` for other devices, which looks at a whole block of products at once."""

    def __init__(self, k: int, slack: Tensor, columns: int) -> None:
        self._k, self._slack, self._room = k, slack, room(k, columns)
        self._ids = torch.empty(len(slack), 0, dtype=torch.int64, device=slack.device)
        self._products = torch.empty(len(slack), 0, device=slack.device)
        self._given_up = np.zeros(len(slack), dtype=bool)

    def add(self, rows: slice, tile: Tensor, ids: np.ndarray, own: np.ndarray) -> None:
        names = torch.from_numpy(ids.astype(np.int64)).to(tile.device).expand(len(tile), -1)
        both, names = torch.cat((self._products, tile), 1), torch.cat((self._ids, names), 1)
        found = shortlist(both, min(self._k, both.shape[1]), self._slack)
        found = found.masked_fill(found >= both.shape[1], -1)  # its padding, where fewer than k are allowed
        products = both.gather(1, found.clamp(min=0)).masked_fill_(found < 0, -torch.inf)
        counts = (products > -torch.inf).sum(1)  # what is forbidden has −∞, and comes last
        self._given_up |= (counts > self._room).cpu().numpy()
        width = min(self._room, int(counts.max()))
        self._products = products[:, :width]
        self._ids = names.gather(1, found[:, :width].clamp(min=0)).masked_fill_(self._products == -torch.inf, -1)

    def take(self, rows: slice) -> Tensor:
        return torch.nn.functional.pad(self._ids, (0, max(0, self._k - self._ids.shape[1])), value=-1)

    def products(self, rows: slice) -> np.ndarray:
        short = max(0, self._k - self._ids.shape[1])
        return np.asarray(torch.nn.functional.pad(self._products, (0, short), value=-torch.inf).cpu())

    def given_up(self, rows: slice) -> np.ndarray:
        return self._given_up
