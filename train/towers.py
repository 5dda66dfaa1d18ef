"""Towers, and the directions in which they are contrasted.

    two views of one tower      (0, 0)             anchors are both views of a row, negatives rows of the same data
    one view of each of two     (0, 1) and (1, 0)  anchors of one side against rows of the other

A direction (a, b) has anchors of tower a, with its negatives, among rows of tower b: they ask b's snapshot, and what
they draw is encoded by b. For two encoders s_ij = l_i · r_j, and the loss is the mean over both directions,

    F = ½ mean_i (−β s_ii + log mean_{j∈D_i} exp(β s_ij))  +  ½ mean_i (−β s_ii + log mean_{j∈D_i} exp(β s_ji))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from negbank.bank import EmbeddingBank, added, unit_rows
from negbank.refresh import Refresher
from negbank.samplers.batches import BatchSampler
from negbank.samplers.negatives import NegativeSampler
from negbank.train.config.meeting import misfit
from negbank.train.data.contract import Data
from negbank.train.passes import has_batch_norm


class Tower(NamedTuple):
    """An encoder with all that is its own.

    encoder: inputs → unit embeddings (n, D). data: what it reads. bank: its embeddings, one row a row of the data.
    negatives: of its anchors. refresher: of its bank; None when nobody asks for an index. name: "left" or "right" of
    two, else "".
    """

    encoder: nn.Module
    data: Data
    bank: EmbeddingBank
    negatives: NegativeSampler
    refresher: Refresher | None = None
    name: str = ""

    def named(self, key: str) -> str:
        """A key of this tower's in the metrics."""
        return f"{self.name}_{key}" if self.name else key


class Direction(NamedTuple):
    """Positions of the towers that anchors, and what they are contrasted with, are of."""

    anchors: int
    keys: int


def directions(towers: int) -> tuple[Direction, ...]:
    """Every direction of one or two towers, those of the first tower's anchors first."""
    return (Direction(0, 0),) if towers == 1 else (Direction(0, 1), Direction(1, 0))


def views_of(towers: int) -> int:
    """Views of a row that each of so many towers sees in a step."""
    return 2 if towers == 1 else 1


def row_of_views(embeddings: Tensor, rows: int, views: int) -> Tensor:
    """One unit row (B, D) for each of B rows, of its one or two views, which come first in embeddings (n, D)."""
    first, *second = embeddings.detach()[: views * rows].split(rows)
    if not second:
        return first
    return unit_rows(added(first, second[0]))


def require_fitting(towers: Sequence[Tower], batches: BatchSampler, *, micro_batch: int | None = None) -> None:
    """Raise ValueError for towers that cannot be trained together, or negatives that need more of batch or encoder."""
    shapes = [tuple(tower.bank.vectors.shape) for tower in towers]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"left, right: banks of shapes {shapes[0]} and {shapes[1]}; pairs need as many rows on both sides and "
            f"embeddings of one width: give the encoders a projection to one"
        )
    normed = [tower for tower in towers if has_batch_norm(tower.encoder)]
    if micro_batch is not None and normed:
        raise ValueError(
            f"run.micro_batch={micro_batch}: the encoder has batch norm, whose statistics would be those of a piece, "
            f"so that pieces give another gradient than the whole step; take a norm without batch statistics "
            f"(encoder.norm=group, encoder.projector.norm=none), or run.micro_batch=null"
        )
    for tower in towers:
        _require_known(tower.negatives, batches)
        if tower.negatives.fresh_queries and normed:
            raise ValueError(
                "negatives: query='fresh' encodes drawn rows in a second pass, where batch statistics tell them from "
                "the anchors; take encoder.norm=group and encoder.projector.norm=none, or query='bank'"
            )


def _require_known(negatives: NegativeSampler, batches: BatchSampler) -> None:
    mine, theirs = (type(each).__name__.lower().removesuffix("batches") for each in (negatives, batches))
    problem = misfit(mine, negatives.requires, theirs, uniform=batches.uniform, known=batches.known)
    if problem is not None:
        raise ValueError(f"negatives: {problem}")


def momentum_of(towers: Sequence[Tower], position: int) -> float | None:
    """m of the slow copy that a tower needs, since some direction's negatives are contrasted with its keys."""
    wanted = [towers[d.anchors].negatives.momentum for d in directions(len(towers)) if d.keys == position]
    return next((m for m in wanted if m is not None), None)


@torch.no_grad()
def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """θ_k ← m θ_k + (1 − m) θ (He et al. 2020, eq. 2). Buffers, such as running statistics, are each encoder's own."""
    for mine, theirs in zip(slow.parameters(), fast.parameters()):
        mine.lerp_(theirs, 1 - momentum)
