"""How well pairs find each other among all rows of the other side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from negbank import ExactIndex
from negbank.bank import unit_rows


def recall_both_ways(
    left: Tensor, right: Tensor, *, ks: Sequence[int] = (1, 5, 10), groups: Tensor | None = None
) -> dict[str, float]:
    """Recall@k of row i's partner among all rows of the other side, by exact search, from left to right and back.

    Args:
        left, right: (N, D) embeddings; row i of one is the partner of row i of the other.
        ks: at which k.
        groups: (N,) labels; every row of the query's label counts as its partner, one of them suffices.

    Returns:
        `left_to_right_at_k` and `right_to_left_at_k`, shares in [0, 1].

    Raises:
        ValueError: for embeddings of different shapes, or a k outside 1..N.
    """
    if left.shape != right.shape:
        raise ValueError(f"left, right: shapes {tuple(left.shape)} and {tuple(right.shape)}; expected one row a pair")
    if not ks or min(ks) < 1 or max(ks) > len(left):
        raise ValueError(f"ks={list(ks)}: expected values in 1..{len(left)}, the number of pairs; lower them")
    labels = torch.arange(len(left), device=left.device) if groups is None else groups.to(left.device)
    result: dict[str, float] = {}
    for name, queries, rows in (("left_to_right", left, right), ("right_to_left", right, left)):
        found = ExactIndex(unit_rows(rows)).search(unit_rows(queries), max(ks)).ids
        hit = labels[found] == labels[:, None]
        result |= {f"{name}_at_{k}": float(hit[:, :k].any(1).double().mean()) for k in ks}
    return result
