"""The vocabulary of proposals: anchors, a proposal bound to a snapshot, and the distribution it gives them."""

from __future__ import annotations

import copy
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from negbank.exclusions import Exclusions
from negbank.index import Index, Neighbors

T = TypeVar("T")


class Anchors(NamedTuple):
    """rows (A,) long: each anchor's own row, `NO_ROW` for an outside query; queries (A, D): to search with."""

    rows: Tensor
    queries: Tensor


class ProposalDistribution(Protocol):
    """The distributions q_i of A anchors."""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """n independent draws an anchor: (A, n) ids, all in D_i."""
        ...

    def log_prob(self, ids: Tensor) -> Tensor:
        """log q_i(j) for ids (A, n): (A, n) float64, −∞ outside D_i."""
        ...

    def __getitem__(self, anchors: slice) -> ProposalDistribution:
        """The distributions of some of the anchors."""
        ...


class Proposal(Protocol):
    """Gives anchors their distributions over the rows of one snapshot."""

    def __call__(self, anchors: Anchors) -> ProposalDistribution: ...


def search_allowed(
    index: Index, exclude: Exclusions, anchors: Anchors, k: int, *, reach: int | None = None
) -> tuple[Neighbors, Tensor]:
    """The nearest rows of anchors, and which of them (A, n) are their k best in D_i.

    They are fewer than k where groups or an unfinished bank leave fewer among the `reach` rows found, k by default.
    """
    extra = 1 + exclude.listed(anchors.rows).shape[1]
    found = index.search(anchors.queries, min((reach or k) + extra, len(index)))
    allowed = exclude.allowed(anchors.rows, found.ids)
    return found, allowed & (allowed.cumsum(1) <= k)


def of_anchors(all_of_them: T, anchors: slice, *names: str) -> T:
    """A copy of an object whose attributes of these names, tensors (A, ...) and the like, are those of some anchors."""
    part = copy.copy(all_of_them)
    for name in names:
        setattr(part, name, getattr(part, name)[anchors])
    return part


def by_id(head: Tensor) -> tuple[Tensor, Tensor]:
    """ids (A, k) in ascending order, and the column (A, k) that each was in.

    Id and column in one integer: so numpy, which sorts several at a time, can do it on a CPU without an argsort.
    """
    bits = (head.shape[1] - 1).bit_length() if head.shape[1] else 0
    keys = (head << bits) | torch.arange(head.shape[1], device=head.device)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)
    else:
        keys = keys.sort(1).values
    return keys >> bits, keys & ((1 << bits) - 1)


def check_head(k: int, rows: int) -> None:
    """Raise ValueError unless each of `rows` rows has k others to retrieve."""
    if k >= rows:
        raise ValueError(f"k={k}: expected 1..{rows - 1}, the other rows of a bank of {rows}")
