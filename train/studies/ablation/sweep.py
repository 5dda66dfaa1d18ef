"""Measurements of an ablation, one after the other, and the function that ablates without a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from negbank import Exclusions, Snapshot
from negbank.proposals import Proposal
from negbank.train.studies.ablation.average import summarise
from negbank.train.studies.ablation.measurement import Key, Measurement, measure
from negbank.train.studies.ablation.sources import unit

Bind = Callable[[Key, Snapshot, Tensor], Proposal]
"""What gives a measurement its proposal: over the bank, and fitted to the truth where it adapts."""
BUDGETS = (1, 2, 4, 8, 16, 32, 64)


def ablate(
    bank: Snapshot,
    truth: Tensor,
    proposals: Mapping[str, Callable[[Snapshot], Proposal]],
    *,
    temperatures: float | Sequence[float] = 0.07,
    budgets: Sequence[int] = BUDGETS,
    anchors: int = 256,
    queries: Sequence[str] = ("bank",),
    exclude: Exclusions | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure proposals over a stale bank against the truth.

    Args:
        bank: the snapshot that the proposals are bound to.
        truth: (N, D) fresh embeddings of the same rows, finite and not zero; normalised here.
        proposals: name → snapshot → proposal, such as {"Nearest k=32": lambda s: Nearest(s, 32)}.
        temperatures: τ of the targets.
        budgets: draws R an anchor, at least 1.
        anchors: rows measured, a random subset; all that the bank has written where there are fewer.
        queries: "bank", "fresh", or both: what is searched with.
        exclude: D_i, and that of the proposals; by default every row but the anchor.
        seed: of the anchors and the timed draws.

    Returns:
        One row a proposal, temperature, query and budget: the mean over anchors of every measure of
        `negbank.train.studies.ablation.measurement`, with its 95 % interval as `..._low` and `..._high`.

    Raises:
        ValueError: for shapes or values that do not fit, or a proposal that is no density over D_i.

    >>> rows = ablate(Snapshot.build(stale), fresh, {"Uniform": Uniform, "Nearest": Nearest}, budgets=[1, 16])
    """
    truth = unit(truth.detach().double(), "truth")
    if truth.shape != bank.vectors.shape:
        raise ValueError(f"truth: shape {tuple(truth.shape)}, expected {tuple(bank.vectors.shape)} as the bank")
    taus = [float(temperatures)] if isinstance(temperatures, int | float) else list(temperatures)
    if not taus or not proposals or not all(tau > 0 for tau in taus):
        raise ValueError(f"temperatures={taus}, proposals={list(proposals)}: expected at least one, above 0")
    if not budgets or min(budgets) < 1:
        raise ValueError(f"budgets={list(budgets)}: expected at least one, each at least 1")
    if not queries or not set(queries) <= {"bank", "fresh"} or anchors < 2:
        raise ValueError(f"queries={list(queries)}, anchors={anchors}: expected bank or fresh, and at least 2 anchors")
    keys = keys_of("bank", taus, queries, list(proposals))
    rows, ascending = choose(bank, anchors, seed), sorted(set(budgets))

    def bind(key: Key, bank: Snapshot, truth: Tensor) -> Proposal:
        return proposals[key.proposal](bank)

    return summarise(measured(bank, truth, rows, bind, keys, budgets=ascending, exclude=exclude, seed=seed))


def keys_of(level: str, temperatures: Sequence[float], queries: Sequence[str], proposals: Sequence[str]) -> list[Key]:
    """The measurements of one level of staleness, in the order they are measured and reported."""
    return [Key(name, tau, level, query) for tau in temperatures for query in queries for name in proposals]


def choose(bank: Snapshot, count: int, seed: int) -> Tensor:
    """Up to `count` random rows that the bank has written, ascending, the same for a seed."""
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))
    if bank.rows is not None:
        order = order[torch.isin(order, bank.rows.cpu())]
    return order[:count].sort().values.to(bank.vectors.device)


def measured(
    bank: Snapshot,
    truth: Tensor,
    anchors: Tensor,
    bind: Bind,
    keys: Sequence[Key],
    *,
    budgets: Sequence[int],
    exclude: Exclusions | None = None,
    seed: int = 0,
) -> Iterator[Measurement]:
    """The measurements of `keys`, one after the other."""
    truth = truth.to(bank.vectors.device)
    for key in keys:
        proposal = bind(key, bank, truth)
        generator = torch.Generator().manual_seed(seed)
        yield measure(bank, truth, anchors, proposal, key, budgets=budgets, exclude=exclude, generator=generator)
