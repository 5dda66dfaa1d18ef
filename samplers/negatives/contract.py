"""The vocabulary of negative samplers: the encoded batch, what they return, and what they can be asked."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from negbank.snapshot import Snapshot

Info = dict[str, float]
"""What a sampler reports of one step, for logs."""


class EncodedBatch(NamedTuple):
    """The unit embeddings of one step, all from one forward pass.

    rows (B,): distinct rows of the data set. anchors (V·B, D): their V views, all first views before all second ones.
    positives (V·B, D): the positive of every anchor. drawn_rows (E,): further distinct rows that the sampler asked
    for, none of them in `rows`; drawn (E, D).
    """

    rows: Tensor
    anchors: Tensor
    positives: Tensor
    drawn_rows: Tensor
    drawn: Tensor

    @classmethod
    def from_views(cls, rows: Tensor, embeddings: Tensor, drawn_rows: Tensor | None = None) -> EncodedBatch:
        """Split the output of one forward pass over [first views, second views, drawn rows]: (2·B + E, D).

        Raises:
            ValueError: when the number of embeddings is not 2·B + E.
        """
        drawn_rows = rows[:0] if drawn_rows is None else drawn_rows
        count = len(rows)
        if len(embeddings) != 2 * count + len(drawn_rows):
            raise ValueError(
                f"embeddings: {len(embeddings)} rows, expected 2·{count} views and {len(drawn_rows)} drawn rows"
            )
        first, second, drawn = embeddings.split((count, count, len(drawn_rows)))
        return cls(rows, embeddings[: 2 * count], torch.cat((second, first)), drawn_rows, drawn)

    @property
    def views(self) -> int:
        """V, views a row."""
        return len(self.anchors) // len(self.rows)

    @property
    def candidates(self) -> Tensor:
        """(C, D), C = V·B + E: all embeddings of the step, in the column order of `Negatives.scores`."""
        return torch.cat((self.anchors, self.drawn))

    @property
    def candidate_rows(self) -> Tensor:
        """(C,): the row of every candidate."""
        return torch.cat((self.rows.repeat(self.views), self.drawn_rows))


class Negatives(NamedTuple):
    """scores (A, C): cosines with gradient; weights (A, C), detached, 0 for what is no negative of the anchor.

    positive_weight (A,): detached weight of the positive; None stands for Σ_r w_ir.
    """

    scores: Tensor
    weights: Tensor
    positive_weight: Tensor | None = None


def require_drawn(drawn: Tensor | None, batch: EncodedBatch) -> None:
    """Raise RuntimeError unless `drawn`, the rows of the last `draw`, are the batch's."""
    if drawn is None or not torch.equal(drawn, batch.rows):
        raise RuntimeError("batch: call draw(batch.rows) first, and encode the rows it returns with the batch")


class NegativeSampler(Protocol):
    """One step: `draw`, encode views and drawn rows together, call. `update` when a new snapshot is swapped in."""

    in_batch: bool
    """Whether the batch's rows are taken for uniform draws: then only uniform batches fit."""
    fresh_queries: bool
    """Whether `draw` wants the fresh embeddings: then views are encoded first, and drawn rows in a second pass."""

    def update(self, snapshot: Snapshot) -> None:
        """Draw from this version of the bank from now on."""
        ...

    def draw(self, rows: Tensor, queries: Tensor | None = None) -> Tensor:
        """Further rows (E,), distinct and not in rows (B,), to be encoded with the batch.

        queries: (B, D) fresh unit embeddings of the rows, for samplers with `fresh_queries`.
        """
        ...

    def __call__(self, batch: EncodedBatch) -> tuple[Negatives, Info]:
        """Scores and weights of every anchor's negatives."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
