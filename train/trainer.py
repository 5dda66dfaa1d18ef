"""One optimisation step, as the data sees it, for one tower or two.

    rows and their views → tickets: each direction's negatives.draw(rows) → one forward pass a tower, over its views and
    what was drawn of it → EncodedBatch of every direction → negatives(batch, ticket): scores, weights
      → mean of the surrogates → optimiser → banks → refreshers
    (fresh queries: views → forward pass → draw(rows, queries) → a second pass for drawn rows)

Negatives with a `momentum` are given keys: the same views by a slow copy of the encoder. The trainer knows no method
and no kind of data: batches say which rows meet, data what their inputs are, negatives which negatives and weights.
Every random number is a function of (seed, stream, step, slot), so that a step can be taken again alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from negbank.counter import Counter
from negbank.refresh import Refresher, RefreshReport
from negbank.samplers.batches import BatchSampler
from negbank.samplers.meeting import Meeting
from negbank.samplers.negatives import EncodedBatch, Info, Negatives, Ticket
from negbank.samplers.negatives.contract import number
from negbank.snapshot import Snapshot
from negbank.train.data.ahead import Ahead, Fetched
from negbank.train.data.contract import collate
from negbank.train.descent import Descent
from negbank.train.evaluate.measures import pair_cosine
from negbank.train.losses import contrasted, info_nce
from negbank.train.passes import Autocast, Passes
from negbank.train.towers import (
    Direction,
    Tower,
    directions,
    follow,
    momentum_of,
    require_fitting,
    row_of_views,
    views_of,
)

PHASES = ("data", "draw", "forward", "negatives", "backward", "optimiser", "bank", "refresh")
"""What the seconds of a step are split into."""


class Encoded(NamedTuple):
    """A step's embeddings: of each tower (views · B + E, D), its keys if it has a momentum copy, each way's ticket."""

    embeddings: list[Tensor]
    keys: list[Tensor | None]
    tickets: list[Ticket]


class Trainer:
    """Steps one or two encoders on the contrastive loss of their negatives.

    Args:
        towers: one, contrasted with itself under two views, or two, whose rows i are each other's positives.
        batches: which rows meet.
        planner: refreshes the snapshots that batches are planned from: a tower's own refresher, or one of both banks
            (`negbank.train.space`); None: the first tower's.
        optimiser: over the encoders and what the negatives learn; its groups' learning rates are the peaks.
        schedule: step → factor of the peak learning rates.
        temperature: τ of the loss.
        counter: of the views and of what layers draw.
        device, autocast: where and in which precision forward passes run.
        workers: processes that read batches ahead of the step.
        micro_batch: inputs that an encoder is given at once, by gradient caching; None: all of a step.

    Raises:
        ValueError: for towers that do not fit each other, or negatives that do not fit the batches or the encoder.
    """

    def __init__(
        self,
        towers: Sequence[Tower],
        *,
        batches: BatchSampler,
        optimiser: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        temperature: float,
        counter: Counter,
        device: torch.device,
        autocast: Autocast,
        workers: int = 0,
        micro_batch: int | None = None,
        compile: bool = False,
        planner: Refresher | None = None,
    ) -> None:
        require_fitting(towers, batches, micro_batch=micro_batch)
        self.towers, self.directions, self.views = tuple(towers), directions(len(towers)), views_of(len(towers))
        self.batches, self.temperature = batches, temperature
        self.planner = self.towers[0].refresher if planner is None else planner
        own = [tower.refresher for tower in self.towers]
        named = [*zip((tower.name for tower in self.towers), own)]
        named += [("batches", self.planner)] if self.planner is not None and self.planner not in own else []
        self.refreshers = [(name, each) for name, each in named if each is not None]
        self.descent = Descent(optimiser, schedule)
        self.device, self.autocast, self.micro_batch = device, autocast, micro_batch
        self.momentum = [momentum_of(towers, t) for t in range(len(towers))]
        self.slow = [
            None if m is None else copy.deepcopy(tower.encoder).requires_grad_(False)
            for tower, m in zip(towers, self.momentum)
        ]
        self.encodings = 0
        self.watchers: list[Callable[[Tensor], Mapping[str, float]]] = []  # rows → more of a step's metrics
        self._forward: list[nn.Module] = [
            torch.compile(tower.encoder, dynamic=True) if compile else tower.encoder  # type: ignore[misc]
            for tower in towers
        ]
        self._views, self._layers = counter.at("views"), counter.at("layers")
        self._ahead = Ahead(
            [tower.data for tower in towers], batches, seeds=self._seeds, views=self.views, piece=micro_batch,
            workers=workers, device=device, draw=self._draw_ahead,
        )  # fmt: skip

    @property
    def step_number(self) -> int:
        """Optimiser steps taken."""
        return self.descent.step_number

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in every phase of the steps."""
        return self.descent.seconds

    def refresh(self) -> list[tuple[str, Refresher, RefreshReport]]:
        """Let every refresher look at the step; new snapshots go to the samplers. Who refreshed, under its name."""
        reports = []
        for name, refresher in self.refreshers:
            with self.descent.timed("refresh"):
                before = refresher.probe
                report = refresher.step(self.step_number)
                if report is not None:
                    reports.append((name, refresher, report))
                if report is not None and report.swapped:
                    self._swap(refresher)
                elif refresher.probe is not before:
                    self._update_negatives(refresher)
        return reports

    def step(self) -> Info:
        """One optimisation step; its metrics, those of a direction under its anchors' tower (see `device.settled`).

        Raises:
            NonFiniteError: for a loss, embedding or gradient that is not finite, before it changes a weight, the bank
                or what negatives keep. The batch counts as taken, and batch statistics have seen it.
        """
        with self.descent.timed("data"):
            fetched = self._ahead.next(self.step_number)
        passes = Passes(
            self._layers.at(self.step_number), autocast=self.autocast, device=self.device,
            cached=self.micro_batch is not None,
        )  # fmt: skip
        encoded = self.encode(fetched, passes)
        rows = fetched.rows
        with self.descent.timed("negatives"):
            losses, values, info, commits = self.contrast(rows, encoded)
            loss, value = torch.stack(losses).mean(), torch.stack(values).mean()
            self.descent.require_finite(torch.stack((loss.detach(), value))[None], rows, "loss")
        rate = self.descent(functools.partial(passes.backward, loss), rows)
        for commit in commits:
            commit()
        with self.descent.timed("optimiser"):
            for tower, slow, momentum in zip(self.towers, self.slow, self.momentum):
                if slow is not None and momentum is not None:
                    follow(slow, tower.encoder, momentum)
        with self.descent.timed("bank"):
            self._write(rows, encoded)
        watched = {name: number for watch in self.watchers for name, number in watch(rows).items()}
        return {"loss": number(value), **watched, "lr": rate, **info}

    def encode(self, fetched: Fetched, passes: Passes) -> Encoded:
        """Draw every direction's negatives and embed views and drawn rows: the forward passes of a step."""
        rows = fetched.rows
        tickets: list[Ticket | None] = [*(fetched.tickets or (self._draw(way, rows) for way in self.directions))]
        embeddings, keys = [], []
        for position, (inputs, slow) in enumerate(zip(fetched.inputs, self.slow)):
            further = _asked(tickets, position, self)
            drawn = self._read(position, rows, further) if fetched.tickets is None else fetched.further[position]
            embeddings.append(self._embed(position, rows, inputs, further, drawn, passes))
            with self.descent.timed("forward"):
                keys.append(None if slow is None else passes.keys(slow, inputs, name=f"keys {position}"))
        for nth, way in enumerate(self.directions):
            if self.towers[way.anchors].negatives.fresh_queries:
                queries = row_of_views(embeddings[way.anchors], len(rows), self.views)
                tickets[nth] = ticket = self._draw(way, rows, queries)
                if ticket is not None and len(ticket.further):
                    drawn = self._read(way.keys, rows, ticket.further)
                    second = self._embed(way.keys, rows, [], ticket.further, drawn, passes)
                    embeddings[way.keys] = torch.cat((embeddings[way.keys], second))
        return Encoded(embeddings, keys, [ticket for ticket in tickets if ticket is not None])

    def contrast(
        self, rows: Tensor, encoded: Encoded
    ) -> tuple[list[Tensor], list[Tensor], Info, list[Callable[[], None]]]:
        """Each direction's surrogate and InfoNCE over the batch, what is reported of them, and `Negatives.commit`."""
        losses, values, info, commits = [], [], {}, []
        for way, ticket in zip(self.directions, encoded.tickets):
            tower = self.towers[way.anchors]
            batch = self.batch(way, rows, encoded, ticket)
            mine, theirs = (encoded.embeddings[each] for each in way)
            loss, found, kept = contrasted(
                tower.negatives, batch, ticket, (mine,) if mine is theirs else (mine, theirs),
                temperature=self.temperature, size=self.micro_batch,
            )  # fmt: skip
            losses.append(loss)
            values.append(info_nce(batch, temperature=self.temperature))
            commits += kept
            mine, theirs = mine.detach(), theirs.detach()
            seen = theirs[len(rows) : 2 * len(rows)] if way.anchors == way.keys else theirs[: len(rows)]
            info["positive"] = number((mine[: len(rows)] * seen).sum(-1).mean())
            info[tower.named("mean_cosine")] = number(pair_cosine(batch.anchors[: len(rows)]))
            info |= {tower.named(name): number for name, number in found.items()}
        return losses, values, info, commits

    def batch(self, way: Direction, rows: Tensor, encoded: Encoded, ticket: Ticket) -> EncodedBatch:
        """What a direction's negatives see of a step."""
        mine, theirs, keys = encoded.embeddings[way.anchors], encoded.embeddings[way.keys], encoded.keys[way.keys]
        count = self.views * len(rows)
        known = meeting(self.batches, rows)
        if way.anchors == way.keys:
            return EncodedBatch.from_views(rows, mine, ticket.further, keys, known)
        return EncodedBatch.from_pairs(
            rows, mine[:count], theirs[:count] if keys is None else keys, ticket.further, theirs[count:], known
        )

    def _draw(
        self, way: Direction, rows: Tensor, queries: Tensor | None = None, *, step: int | None = None
    ) -> Ticket | None:
        """A direction's ticket, of this step; None while its negatives wait for fresh queries."""
        tower, step = self.towers[way.anchors], self.step_number if step is None else step
        if tower.negatives.fresh_queries and queries is None:
            return None
        with self.descent.timed("draw"):
            if queries is None and way.anchors != way.keys:  # asked of another tower's snapshot
                queries = tower.bank.read(rows)
            return tower.negatives.draw(rows, step=step, queries=queries)

    def _draw_ahead(self, step: int, rows: Tensor, met: Tensor) -> tuple[list[Ticket], list[Tensor]] | None:
        """See `Ahead`. Pairs are not drawn for ahead: their queries are bank rows, which any step may write."""
        able = all(tower.negatives.draws_ahead for tower in self.towers) and len(self.towers) == 1
        if not able or bool(torch.isin(rows, met).any()):
            return None
        tickets = [self._draw(way, rows, step=step) for way in self.directions]
        return [t for t in tickets if t is not None], [_asked(tickets, t, self) for t in range(len(self.towers))]

    def _read(self, position: int, rows: Tensor, further: Tensor) -> list[Any]:
        """One view of further rows (E,), now, in pieces."""
        if not len(further):
            return []
        with self.descent.timed("data"):
            slots = torch.arange(len(further)) + self.views * len(rows)
            return self._ahead.read(position, further, self._seeds(self.step_number, position, slots))

    def _embed(
        self, position: int, rows: Tensor, inputs: list[Any], further: Tensor, drawn: list[Any], passes: Passes
    ) -> Tensor:
        """Views of rows (or none), and one view of further rows (E,), inputs and drawn, in one pass."""
        tower, pieces = self.towers[position], [*inputs, *drawn]
        if drawn and self.micro_batch is None:
            with self.descent.timed("data"):
                pieces = [collate(tower.data, pieces)]
        with self.descent.timed("forward"):
            name = f"{position} second" if not inputs else str(position)
            embeddings = passes(self._forward[position], pieces, name=name)
            every = torch.cat((rows.repeat(self.views if inputs else 0), further))
            found = embeddings.detach()  # what overflows may be normalised to a row of zeros, which has no direction
            self.descent.require_finite(found / found.norm(dim=-1, keepdim=True), every, "embedding")
        return embeddings

    def _seeds(self, step: int, position: int, slots: Tensor) -> Tensor:
        """One seed for the view of each input of a step: (n,) int64."""
        return self._views.at(step, position).seeds(slots)

    @torch.no_grad()
    def _write(self, rows: Tensor, encoded: Encoded) -> None:
        for position, tower in enumerate(self.towers):
            embeddings, keys = encoded.embeddings[position].detach(), encoded.keys[position]
            ids = torch.cat((rows, _asked(encoded.tickets, position, self)))
            vectors = torch.cat((row_of_views(embeddings, len(rows), self.views), embeddings[self.views * len(rows) :]))
            tower.bank.write(ids, vectors, step=self.step_number)
            self.encodings += len(embeddings) + (0 if keys is None else len(keys))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs but the snapshots, which are saved beside it."""
        towers = [
            {
                "encoder": tower.encoder.state_dict(),
                "slow": None if slow is None else slow.state_dict(),
                "bank": tower.bank.state_dict(),
                "negatives": tower.negatives.state_dict(),
            }
            for tower, slow in zip(self.towers, self.slow)
        ]
        mine = {"encodings": self.encodings, "towers": towers, "batches": self._ahead.state_dict()}
        mine["refreshers"] = [refresher.state_dict() for _, refresher in self.refreshers]
        return {**self.descent.state_dict(), **mine}

    def load_state_dict(self, state: dict[str, Any], snapshots: Sequence[Snapshot | None]) -> None:
        """Restore `state_dict`, with the snapshot of every refresher that was in use."""
        self.descent.load_state_dict(state)
        self.encodings = state["encodings"]
        for tower, slow, saved in zip(self.towers, self.slow, state["towers"]):
            tower.encoder.load_state_dict(saved["encoder"])
            if slow is not None:
                slow.load_state_dict(saved["slow"])
            tower.bank.load_state_dict(saved["bank"])
        for (_, refresher), saved, snapshot in zip(self.refreshers, state["refreshers"], snapshots):
            refresher.load_state_dict(saved, snapshot)
            self._swap(refresher)
        self._ahead.load_state_dict(state["batches"])
        for tower, saved in zip(self.towers, state["towers"]):
            tower.negatives.load_state_dict(saved["negatives"])

    def snapshots(self) -> list[Snapshot | None]:
        """The snapshot of every refresher that is in use."""
        return [refresher.snapshot for _, refresher in self.refreshers]

    def _swap(self, refresher: Refresher) -> None:
        """Have whoever reads the snapshots of a refresher read its new one."""
        if refresher is self.planner and refresher.snapshot is not None:
            self._ahead.update(refresher.snapshot)
        self._update_negatives(refresher)

    def _update_negatives(self, refresher: Refresher) -> None:
        self._ahead.forget()
        for way in self.directions:
            if refresher.snapshot is not None and self.towers[way.keys].refresher is refresher:
                self.towers[way.anchors].negatives.update(refresher.snapshot)


def _asked(tickets: Sequence[Ticket | None], position: int, trainer: Trainer) -> Tensor:
    """Further rows (E,) that are to be encoded by a tower."""
    found = [t.further for t, way in zip(tickets, trainer.directions) if t is not None and way.keys == position]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64, device=trainer.device)


def meeting(batches: BatchSampler, rows: Tensor) -> Meeting | None:
    """What the batches say of the rows (B,) they handed out; None where they are uniform, or say nothing."""
    return batches.meeting(rows) if batches.known and not batches.uniform else None


__all__ = ["PHASES", "Negatives", "Trainer", "meeting"]
