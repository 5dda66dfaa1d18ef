"""The vocabulary of negative samplers: the encoded batch, what they return, and what they can be asked.

ticket = sampler.draw(rows, step=t)          which further rows to encode, known before the forward pass
negatives, info = sampler(batch, ticket)     their scores and weights, of the batch that was encoded with them
negatives.commit()                           once the step is taken: what the sampler keeps of it

Neither of the first two changes a sampler: a step that is refused for a loss or gradient that is not finite, or that is
only measured, leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from negbank.bank import NO_ROW, require_rows
from negbank.exclusions import Exclusions
from negbank.samplers.meeting import Meeting, Part
from negbank.snapshot import Snapshot

Info = dict[str, Any]
"""What a sampler reports of one step, for logs: floats, and tensors () of a device that nobody has waited for yet."""


class EncodedBatch(NamedTuple):
    """The unit embeddings of one step, all from one forward pass.

    rows (B,): distinct rows of the data set. anchors (V·B, D): their V views, all first views before all second ones.
    positives (V·B, D): the positive of every anchor. drawn_rows (E,): further distinct rows that the sampler asked
    for, none of them in `rows`; drawn (E, D). keys (V·B, D): what anchors are contrasted with in place of the anchors
    themselves, in their order: the same views by a momentum encoder, or the same rows by a second encoder; None
    without one. meeting: how the rows met, as their batch sampler knows; None where they are uniform draws.
    others (B',): where anchors are a part of a batch, the rows of the whole batch, of which `keys` (V·B', D) then are;
    None: rows.
    """

    rows: Tensor
    anchors: Tensor
    positives: Tensor
    drawn_rows: Tensor
    drawn: Tensor
    keys: Tensor | None = None
    meeting: Meeting | None = None
    others: Tensor | None = None

    @classmethod
    def from_views(
        cls,
        rows: Tensor,
        embeddings: Tensor,
        drawn_rows: Tensor | None = None,
        keys: Tensor | None = None,
        meeting: Meeting | None = None,
    ) -> EncodedBatch:
        """Split the output of one forward pass over [first views, second views, drawn rows]: (2·B + E, D).

        With keys (2·B, D), of the first views and the second, an anchor's positive is the key of its row's other view.

        Raises:
            ValueError: when the number of embeddings is not 2·B + E, or that of the keys not 2·B.
        """
        drawn_rows = rows[:0] if drawn_rows is None else drawn_rows
        count = len(rows)
        if len(embeddings) != 2 * count + len(drawn_rows):
            raise ValueError(
                f"embeddings: {len(embeddings)} rows, expected 2·{count} views and {len(drawn_rows)} drawn rows"
            )
        if keys is not None and len(keys) != 2 * count:
            raise ValueError(f"keys: {len(keys)} rows, expected one for each of 2·{count} views")
        anchors, drawn = embeddings.split((2 * count, len(drawn_rows)))
        first, second = (anchors if keys is None else keys).split(count)
        return cls(rows, anchors, torch.cat((second, first)), drawn_rows, drawn, keys, meeting)

    @classmethod
    def from_pairs(
        cls,
        rows: Tensor,
        anchors: Tensor,
        keys: Tensor,
        drawn_rows: Tensor | None = None,
        drawn: Tensor | None = None,
        meeting: Meeting | None = None,
    ) -> EncodedBatch:
        """One direction of two-way contrast: anchors (B, D) of one encoder against rows of another one.

        keys (B, D): the same rows by the other encoder, each the positive of its anchor. drawn (E, D): further rows by
        the other encoder. The opposite direction is another batch, with a sampler of its own.

        Raises:
            ValueError: when the numbers of rows, anchors and keys differ, or those of drawn rows and their embeddings.
        """
        drawn_rows = rows[:0] if drawn_rows is None else drawn_rows
        drawn = keys[:0] if drawn is None else drawn
        if not len(rows) == len(anchors) == len(keys) or len(drawn_rows) != len(drawn):
            raise ValueError(
                f"rows: {len(rows)} for {len(anchors)} anchors and {len(keys)} keys, {len(drawn_rows)} drawn rows for "
                f"{len(drawn)} embeddings; expected one each"
            )
        return cls(rows, anchors, keys, drawn_rows, drawn, keys, meeting)

    def part(self, rows: slice) -> EncodedBatch:
        """Some of the rows' anchors, against the same candidates: weights of an anchor need not know the others'."""
        return self._replace(
            rows=self.rows[rows],
            anchors=of_rows(self.anchors, rows, self.views),
            positives=of_rows(self.positives, rows, self.views),
            keys=self.anchors if self.keys is None else self.keys,
            meeting=None if self.meeting is None else Part(self.meeting, len(self.rows), rows),
            others=self.batch_rows,
        )

    @property
    def batch_rows(self) -> Tensor:
        """(B',): the rows of the whole batch."""
        return self.rows if self.others is None else self.others

    @property
    def inside(self) -> int:
        """V·B': how many of the candidates, the first ones, are of the batch's rows."""
        return self.views * len(self.batch_rows)

    @property
    def views(self) -> int:
        """V, views a row."""
        return len(self.anchors) // len(self.rows)

    @property
    def candidates(self) -> Tensor:
        """(C, D), C = V·B' + E: what anchors can be contrasted with, in the column order of `Negatives.scores`."""
        return torch.cat((self.anchors if self.keys is None else self.keys, self.drawn))

    @property
    def candidate_rows(self) -> Tensor:
        """(C,): the row of every candidate."""
        return torch.cat((self.batch_rows.repeat(self.views), self.drawn_rows))

    @property
    def scores(self) -> Tensor:
        """(A, C): cosines of all anchors and candidates."""
        return self.anchors @ self.candidates.T

    @property
    def positive_scores(self) -> Tensor:
        """(A,): s⁺, the cosine of every anchor and its positive."""
        return (self.anchors * self.positives).sum(-1)

    def allowed(self, exclude: Exclusions | None) -> Tensor:
        """(A, C) bool: which candidates are allowed negatives of which anchor; without `exclude`, all but its row.

        Raises:
            ValueError: for rows that are not of the data set.
        """
        require_rows(self.rows, None if exclude is None else exclude.num_rows)
        ids = self.candidate_rows
        if exclude is None:
            allowed = self.rows[:, None] != ids
        else:
            allowed = exclude.to(ids.device).allowed(self.rows, ids.expand(len(self.rows), -1))
        return allowed.repeat(self.views, 1)

    def times(self, ids: Tensor, each: Tensor | None = None) -> Tensor:
        """How often each candidate's row is among ids (B, n), those drawn for the batch's rows: (A, C).

        each: (A, n) or (A, 1), what a draw counts for an anchor; 1 by default. A row with several columns, one a view,
        has an equal share of its count on each. −1 pads.
        """
        distinct, column, repeats = self.candidate_rows.unique(return_inverse=True, return_counts=True)
        ids = ids.repeat(self.views, 1)
        count = self.anchors.new_zeros(len(ids), len(distinct))
        at = torch.searchsorted(distinct, ids.clamp(min=0).contiguous()).clamp(max=len(distinct) - 1)
        drawn = (ids != NO_ROW).to(count)
        count.scatter_add_(1, at, drawn if each is None else drawn * each.to(count))
        return (count / repeats)[:, column]


def keep_nothing() -> None:
    """What most samplers keep of a step."""


class Negatives(NamedTuple):
    """scores (A, C): cosines with gradient; weights (A, C), detached, 0 for what is no negative of the anchor.

    The C columns are the batch's candidates, or what else the sampler keeps. positive_weight (A,): detached weight of
    the positive; None stands for Σ_r w_ir. temperature (A,) or (): τ of the anchors where it is not the loss's, with
    gradient where it is learned. commit: to be called after the backward pass of a step that is taken; it moves what
    the sampler keeps between steps: chains, averages, a queue, a cache.
    """

    scores: Tensor
    weights: Tensor
    positive_weight: Tensor | None = None
    temperature: Tensor | None = None
    commit: Callable[[], None] = keep_nothing


def number(value: Tensor) -> Any:
    """A reported tensor () as a float, or on a device as it is: the host would have to wait for it."""
    return float(value) if value.device.type == "cpu" else value.detach()


def hardness(weights: Tensor, scores: Tensor) -> Any:
    """Mean over anchors of Σ w s / Σ w, of weights and scores (A, C): how near the negatives are, as they weigh."""
    total = torch.linalg.vecdot(weights, scores.detach().to(weights.dtype))
    return number((total / weights.sum(1).clamp(min=1e-12)).mean())


def of_rows(each: Tensor, rows: slice, views: int) -> Tensor:
    """What (V·B, ...) holds of some of the B rows, under their V views."""
    return each.unflatten(0, (views, -1))[:, rows].flatten(0, 1)


class Ticket(NamedTuple):
    """What `draw` hands to `__call__`.

    step: of the optimiser. rows (B,): of the batch that was drawn for. further (E,): distinct rows, none of them in
    `rows`, to be encoded with the batch. own: what the sampler drew, for itself. first, whole: where `rows` begin in
    the whole batch, and how many rows that has; 0: it is they.
    """

    step: int
    rows: Tensor
    further: Tensor
    own: Any = None
    first: int = 0
    whole: int = 0

    @classmethod
    def of(cls, step: int, rows: Tensor, ids: Tensor, own: Any = None) -> Ticket:
        """A ticket for the distinct rows of ids (...), padded by −1, that are not in the batch's rows (B,)."""
        distinct = ids.unique()
        return cls(step, rows, distinct[(distinct != NO_ROW) & ~torch.isin(distinct, rows)], own)

    def part(self, rows: slice) -> Ticket:
        """That of some of the rows, for `EncodedBatch.part`; `own` (B, ...) is sliced, or has such a method itself."""
        own = self.own if self.own is None else self.own[rows] if isinstance(self.own, Tensor) else self.own.part(rows)
        return Ticket(self.step, self.rows[rows], self.further, own, rows.start, len(self.rows))

    @property
    def batch_size(self) -> int:
        """B', rows of the whole batch."""
        return self.whole or len(self.rows)

    @property
    def last(self) -> bool:
        """Whether the whole batch is through with this part, so that what it leaves for later steps can be kept."""
        return self.first + len(self.rows) == self.batch_size

    def slots(self, views: int) -> Tensor:
        """(V·B,): each anchor's place among those of the whole batch, for random numbers of its own."""
        at = torch.arange(len(self.rows), device=self.rows.device) + self.first
        return (torch.arange(views, device=at.device)[:, None] * self.batch_size + at).flatten()

    def require(self, batch: EncodedBatch) -> None:
        """Raise ValueError unless the batch is of the rows drawn for, with the further rows."""
        for mine, theirs in ((self.rows, batch.rows), (self.further, batch.drawn_rows)):
            if mine is not theirs and not torch.equal(mine, theirs):
                raise ValueError(
                    "ticket: drawn for other rows than the batch holds; call draw(batch.rows, step=...) and encode the "
                    "`further` rows of its ticket with the batch"
                )


class NegativeSampler(Protocol):
    """One step: `draw`, encode the views and the ticket's further rows, call. `update` when a new snapshot comes in.

    What inherits from it need write `__call__` alone: by default a sampler draws nothing, reads no snapshot and keeps
    nothing between steps. What it draws is a function of its counter and the step. A batch may be called for in parts,
    one after another, each with its part of the ticket: what a step leaves for later ones changes with the rows of a
    part, or with the `last` one.
    """

    requires: Literal["uniform", "known", "any"] = "any"
    """Of which batches it knows what their rows are: "uniform" draws, batches of "known" `expected`, or "any"."""
    reads_snapshot: bool = False
    """Whether it asks the bank's index, so that a snapshot is to be built."""
    fresh_queries: bool = False
    """Whether `draw` wants the fresh embeddings: then views are encoded first, and further rows in a second pass."""
    draws_ahead: bool = False
    """Whether draws of a batch can change by a step only where that met one of the batch's rows, or by `update`."""
    momentum: float | None = None
    """Of the encoder that gives the batch's keys, θ_k ← m θ_k + (1 − m) θ after every step; None: there is none."""
    learned: Sequence[Tensor] = ()
    """What the optimiser trains along with the encoder, such as a temperature."""

    def update(self, snapshot: Snapshot) -> None:
        """Draw from this version of the bank from now on."""
        return

    def draw(self, rows: Tensor, *, step: int, queries: Tensor | None = None) -> Ticket:
        """The ticket of rows (B,) at a step: which further rows are to be encoded with them.

        queries: (B, D) unit embeddings of the rows to search with: fresh ones for samplers with `fresh_queries`, and
        where anchors are of another encoder those of its bank. Without them it is the bank rows that negatives are of.

        Raises:
            ValueError: without `queries` for a sampler with `fresh_queries`, or for rows that are not of the data set.
        """
        return Ticket(step, rows, rows[:0])

    def __call__(self, batch: EncodedBatch, ticket: Ticket) -> tuple[Negatives, Info]:
        """Scores and weights of every anchor's negatives. What is kept of the step, `Negatives.commit` keeps.

        Raises:
            ValueError: for the ticket of another batch, or rows that are not of the data set.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is kept between steps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it.

        Raises:
            ValueError: for the state of another data set's sampler.
        """
        return
