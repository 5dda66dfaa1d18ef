"""Measures of a ranking of a whole corpus, from the rank of every judged document.

    rank of d for query q    1 + #{d' : s(q, d') ≥ s(q, d) − 10⁻⁶, d' not judged relevant} + those relevant before d
    recall@k                 share of the relevant documents with rank ≤ k
    mrr@k                    1 / the best rank, 0 where it is above k
    ndcg@k                   Σ_{rank ≤ k} grade / log₂(rank + 1), over what the best order would give (as trec_eval)

Means over queries. Ties count against: an encoder that maps all to one point scores 0. Relevant documents that tie are
taken in the order of rising grade.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from negbank.ragged import place_in_group, starts

TIE = 1e-6
SCORES = 1 << 25
"""Scores held at once."""


class Judgements(NamedTuple):
    """Which documents are relevant, query by query.

    queries, documents (R,): positions, ascending by query, no pair twice. grades (R,): above 0.
    """

    queries: Tensor
    documents: Tensor
    grades: Tensor


@torch.no_grad()
def ranks(queries: Tensor, corpus: Tensor, judged: Judgements) -> Tensor:
    """The rank of every judged document among the whole corpus: (R,) int64, from 1.

    Args:
        queries: (Q, D) unit rows.
        corpus: (N, D) unit rows.
        judged: of them.
    """
    own = (queries[judged.queries] * corpus[judged.documents]).sum(1)
    above = torch.empty_like(judged.queries)
    for part in torch.arange(len(own), device=own.device).split(max(1, SCORES // len(corpus))):
        scores = queries[judged.queries[part]] @ corpus.T
        scores.scatter_(1, judged.documents[part, None], own[part, None])
        above[part] = (scores >= own[part, None] - TIE).sum(1)
    # Of those, relevant ones of the same query count by their place among themselves.
    place = place_in_group(judged.queries, -own, judged.grades)
    return above - _at_least(own, judged.queries) + place + 1


def _at_least(own: Tensor, queries: Tensor) -> Tensor:
    """How many of a query's judged documents score no less than each of them, itself among them: (R,)."""
    counts = torch.bincount(queries)
    if int(counts.max()) <= 1:
        return torch.ones_like(queries)
    start, found = starts(counts), torch.zeros_like(queries)
    for shift in range(int(counts.max())):
        inside = shift < counts[queries]
        other = (start[queries] + shift).clamp(max=len(own) - 1)
        found += inside & (own[other] >= own - TIE)
    return found


def measured(
    rank: Tensor, judged: Judgements, *, recalls: Sequence[int] = (1, 5, 10), cut: int = 10
) -> dict[str, Tensor]:
    """Each query's measures: name → (Q',) float64, of the queries with a judgement, ascending.

    Args:
        rank: of every judged document (R,).
        judged: the documents.
        recalls: k of the recalls.
        cut: k of mrr and ndcg.
    """
    distinct, query = judged.queries.unique(return_inverse=True)
    count, grades = len(distinct), judged.grades.double()

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(count).index_add_(0, query, values)

    discount = 1 / (rank.double() + 1).log2()
    best = torch.full((count,), torch.inf, dtype=torch.float64, device=rank.device)
    best.scatter_reduce_(0, query, rank.double(), "amin")
    place = place_in_group(query, -grades)
    ideal = torch.where(place < cut, grades / (place.double() + 2).log2(), 0.0)
    found = {f"recall@{k}": total((rank <= k).double()) / torch.bincount(query) for k in recalls}
    found[f"mrr@{cut}"] = torch.where(best <= cut, 1 / best, 0.0)
    found[f"ndcg@{cut}"] = total(torch.where(rank <= cut, grades * discount, 0.0)) / total(ideal)
    return found
