"""Exact search among unit rows on any device: fast products, then the scores of what they leave.

A score is an inner product in float32, summed one pair at a time (`exact_scores`). The k best of all rows by (−score,
id) come from products that are near the scores (`products.py`), of which every row keeps a shortlist (`shortlist.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from negbank.bank import NO_ROW
from negbank.index.contract import MEMORY, Neighbors, by_score_then_id, exact_scores
from negbank.index.products import Products, fast_dtype
from negbank.index.shortlist import Shortlist, room, shortlist
from negbank.index.threads import OwnThreads, threads_for

TILE = 1024
"""Rows, and columns, of a tile of products, which is to stay in a core's cache."""
ROUND_FOR = 512
"""Queries from which on it pays to round a bank first."""


def exact_search(
    vectors: Tensor,
    queries: Tensor,
    k: int,
    *,
    own: Tensor | None = None,
    longest: Tensor | None = None,
    memory: int = MEMORY,
    dtype: torch.dtype | None = None,
) -> Neighbors:
    """The k best rows of vectors (n, D), by position, for queries (B, D) float32; k of them without the own one.

    Args:
        own: (B,) the row that is not for query q; −1 for none.
        longest: the largest length of the rows, where it is known.
        memory: bytes held at once beside vectors, their copy for fast products, queries and the result.
        dtype: of the products; `fast_dtype` by default, and float32 for few queries.
    """
    device = vectors.device
    dtype = dtype or (fast_dtype(device) if len(queries) >= ROUND_FOR else torch.float32)
    products = Products(vectors, dtype, queries, longest=longest)
    every = torch.arange(len(vectors), device=device)
    own = torch.full((len(queries),), NO_ROW, device=device) if own is None else own
    ids = torch.empty(len(queries), k, dtype=torch.int64, device=device)
    scores = torch.empty(len(queries), k, device=device)
    with OwnThreads(threads_for(len(queries) * len(vectors), device)) as threads:
        step = rows_at_once(k, len(vectors), memory // threads.count, device)
        step = max(1, min(step, -(-len(queries) // threads.count)))

        def some(at: int) -> None:
            part = slice(at, at + step)
            left, slack = products.left[part], products.slack[part]
            listed = shortlists(left, products.right, slack, every, own[part], k)
            ids[part], scores[part] = ranked(vectors, queries[part], listed, every, own[part], k)

        threads.run(some, range(0, len(queries), step))
    return Neighbors(ids, scores)


def shortlists(
    left: Tensor, right: Tensor, slack: Tensor, ids: Tensor, own: Tensor, k: int, places: Tensor | None = None
) -> Tensor:
    """The shortlists of a few queries among the same columns: (B, w ≥ k) ids, padded with −1.

    Args:
        left, right, slack: as of `Products`: (≥ B, E), (≥ c, E) and (B,).
        ids, own: (c,) ids of the columns, and (B,) the one that is not for this query, −1 for none.
        places: (≥ c,) the rows of `right` that are the columns; the first c by default.

    What left and places have more than B and c is multiplied and not looked at. Products of a few shapes are faster
    than of many, for each of which the CPU's library compiles a function.
    """
    if left.device.type not in Shortlist.devices:
        columns = right[: len(ids)] if places is None else right.index_select(0, places[: len(ids)])
        products = (left[: len(own)] @ columns.T).masked_fill_(own[:, None] == ids, -torch.inf)
        found = shortlist(products, k, slack)
        return torch.where(found < 0, NO_ROW, ids[found].to(torch.int64))
    result = Shortlist(k, slack, left.dtype, len(ids))
    names, own_names = (t.to(torch.int32).numpy() for t in (ids, own))
    wide = max(TILE, TILE * TILE // 4 // max(1, len(left)) // 256 * 256)
    space = torch.empty(len(left) * wide, dtype=left.dtype)
    for at in range(0, len(ids), wide):
        columns = right[at : at + wide] if places is None else right.index_select(0, places[at : at + wide])
        tile = space[: len(left) * len(columns)].view(len(left), len(columns))
        torch.mm(left, columns.T, out=tile)
        result.add(slice(None), tile, names[at : at + wide], own_names)
    return result.take(slice(None))


def ranked(vectors: Tensor, queries: Tensor, listed: Tensor, ids: Tensor, own: Tensor, k: int) -> Neighbors:
    """The k best by (−score, id) of each query's shortlist; of all `ids` but the own one, where it is of no id."""
    best = by_score_then_id(listed, exact_scores(vectors, queries, listed), k)
    for q in (listed[:, 0] < 0).nonzero().flatten().tolist():
        others = ids[ids != own[q]][None]
        whole = by_score_then_id(others, exact_scores(vectors, queries[q : q + 1], others), k)
        best.ids[q], best.scores[q] = whole.ids[0], whole.scores[0]
    return best


def rows_at_once(k: int, columns: int, memory: int, device: torch.device) -> int:
    """Rows, at least one, whose products or shortlists and whose ranking take about `memory` bytes."""
    each, most = (48 * room(k, columns), TILE) if device.type in Shortlist.devices else (24 * columns, columns)
    return max(1, min(most, memory // each))
