"""One optimisation step, as the data sees it.

    rows → negatives.draw(rows) → views of rows and the ticket's further rows → one forward pass → EncodedBatch
      (with fresh queries: views of rows → forward pass → negatives.draw(rows, queries) → a second for further rows)
      → negatives(batch, ticket): scores, weights → surrogate loss → optimiser → bank.write → refresher.step

Negatives with a `momentum` are given keys, too: the same views by a copy of the encoder that follows it slowly,
θ_k ← m θ_k + (1 − m) θ (He et al. 2020, eq. 2), without gradient.

The trainer knows no method: a batch sampler says which rows meet, a negative sampler which negatives and weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from negbank.samplers.batches import BatchSampler
from negbank.samplers.negatives import EncodedBatch, Expected, NegativeSampler
from negbank.train.data.images import Images
from negbank.train.descent import Descent, NonFiniteError
from negbank.train.losses import info_nce, surrogate
from negbank.train.measures import mean_cosine
from negbank.train.meetings import Meetings
from torch import Tensor, nn

from negbank import EmbeddingBank, Refresher, Snapshot
from negbank.bank import unit_rows
from negbank.refresh import RefreshReport

__all__ = ["PHASES", "NonFiniteError", "Trainer"]

PHASES = ("data", "draw", "forward", "negatives", "backward", "optimiser", "bank", "refresh")
"""What the seconds of a step are split into."""


class Trainer:
    """Steps an embedder on the two-view contrastive loss of a negative sampler.

    Args:
        embedder: images (B, C, S, S) → unit embeddings (B, D).
        images: the training rows.
        augment: uint8 images → one random view of each, with `generator=`.
        batches, negatives: the samplers. In-batch proposals, and averages over batches, need uniform ones.
        bank: one row a training row; written at every step, by the trainer alone.
        refresher: builds the snapshots; None when no sampler asks for one.
        optimiser: over the embedder's parameters; its groups' learning rates are the peaks.
        schedule: step → factor of the peak learning rates.
        temperature: τ of the loss.
        generator: of the views, on the CPU.
        device, autocast: where and in which precision the forward pass runs.

    Raises:
        ValueError: for in-batch proposals under batches that are not uniform, or fresh queries with batch statistics.
    """

    def __init__(
        self,
        embedder: nn.Module,
        images: Images,
        *,
        augment: Callable[..., Tensor],
        batches: BatchSampler,
        negatives: NegativeSampler,
        bank: EmbeddingBank,
        refresher: Refresher | None,
        optimiser: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        temperature: float,
        generator: torch.Generator,
        device: torch.device,
        autocast: Callable[[], torch.autocast],
    ) -> None:
        require_fitting(negatives, batches, embedder)
        self.embedder, self.images, self.augment = embedder, images, augment
        self.momentum_encoder = None if negatives.momentum is None else copy.deepcopy(embedder).requires_grad_(False)
        self.batches, self.negatives, self.bank, self.refresher = batches, negatives, bank, refresher
        self.optimiser, self.descent, self.temperature = optimiser, Descent(optimiser, schedule), temperature
        self.generator, self.device, self.autocast = generator, device, autocast
        self.meetings = Meetings(len(images), images.labels, device)
        self.encodings = 0
        self._stream = self._endless()

    @property
    def step_number(self) -> int:
        """Optimiser steps taken."""
        return self.descent.step_number

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in every phase of the steps."""
        return self.descent.seconds

    def refresh(self) -> RefreshReport | None:
        """Let the refresher look at the step; pass a new snapshot on to the samplers."""
        if self.refresher is None:
            return None
        with self.descent.timed("refresh"):
            before = self.refresher.staleness
            report = self.refresher.step(self.step_number)
            if report is not None and report.swapped:
                self._swap(self.refresher.snapshot)
            elif self.refresher.staleness is not before and self.refresher.snapshot is not None:
                self.negatives.update(self.refresher.snapshot)
        return report

    def step(self) -> dict[str, float]:
        """One optimisation step; its metrics.

        Raises:
            NonFiniteError: before anything is changed by a loss, embedding or gradient that is not finite.
        """
        with self.descent.timed("data"):
            rows = torch.tensor(next(self._stream), device=self.device)
        step = self.step_number
        if self.negatives.fresh_queries:
            embeddings, keys = self._embed(rows, rows[:0])
            with self.descent.timed("draw"):
                first, second = embeddings.detach().chunk(2)
                ticket = self.negatives.draw(rows, step=step, queries=unit_rows(first + second))
            if len(ticket.further):
                embeddings = torch.cat((embeddings, self._embed(rows[:0], ticket.further)[0]))
        else:
            with self.descent.timed("draw"):
                ticket = self.negatives.draw(rows, step=step)
            embeddings, keys = self._embed(rows, ticket.further)
        drawn = ticket.further
        batch = EncodedBatch.from_views(rows, embeddings, drawn, keys, expected(self.batches, rows))
        with self.descent.timed("negatives"):
            negatives, info = self.negatives(batch, ticket)
            loss = surrogate(batch, negatives, temperature=self.temperature)
            value = info_nce(batch, temperature=self.temperature)
            self.descent.require_finite(torch.stack((loss.detach(), value))[None], rows, "loss")
        rate = self.descent(loss, rows)
        with self.descent.timed("optimiser"):
            self._follow()
        with self.descent.timed("bank"):
            self.encodings += len(embeddings) + (0 if keys is None else len(keys))
            first, second = batch.anchors.detach().chunk(2)
            self.bank.write(
                torch.cat((rows, drawn)), torch.cat((unit_rows(first + second), batch.drawn)), step=self.step_number
            )
        return {
            "loss": float(value),
            "positive": float((first * second).sum(-1).mean()),
            "mean_cosine": mean_cosine(first),
            **self.meetings(rows),
            "lr": rate,
            **info,
        }

    def _embed(self, rows: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor | None]:
        """First views of rows (B,), second views, and one view of drawn rows (E,), in one pass: (2B + E, D).

        And the keys (2B, D) of the same views of rows, if there is a momentum encoder.
        """
        with self.descent.timed("data"):
            images = self.images.read(torch.cat((rows, drawn)).cpu()).to(self.device)
            images = torch.cat((images[: len(rows)], images))
            views = self.augment(images, generator=self.generator).contiguous(memory_format=torch.channels_last)
        with self.descent.timed("forward"):
            self.embedder.train()
            with self.autocast():
                embeddings: Tensor = self.embedder(views)
            self.descent.require_finite(embeddings, torch.cat((rows, rows, drawn)), "embedding")
            if self.momentum_encoder is None or not len(rows):
                return embeddings, None
            with torch.no_grad(), self.autocast():
                return embeddings, self.momentum_encoder.train()(views[: 2 * len(rows)])

    @torch.no_grad()
    def _follow(self) -> None:
        """θ_k ← m θ_k + (1 − m) θ. Buffers, such as running statistics, are each encoder's own."""
        if self.momentum_encoder is not None and self.negatives.momentum is not None:
            for slow, fast in zip(self.momentum_encoder.parameters(), self.embedder.parameters()):
                slow.lerp_(fast, 1 - self.negatives.momentum)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs but the snapshot, which is saved beside it."""
        return {
            **self.descent.state_dict(),
            "encodings": self.encodings,
            "embedder": self.embedder.state_dict(),
            "momentum_encoder": None if self.momentum_encoder is None else self.momentum_encoder.state_dict(),
            "bank": self.bank.state_dict(),
            "batches": self.batches.state_dict(),
            "meetings": self.meetings.state_dict(),
            "negatives": self.negatives.state_dict(),
            "refresher": None if self.refresher is None else self.refresher.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], snapshot: Snapshot | None) -> None:
        """Restore `state_dict`, with the snapshot that was in use."""
        self.descent.load_state_dict(state)
        self.encodings = state["encodings"]
        self.embedder.load_state_dict(state["embedder"])
        if self.momentum_encoder is not None:
            self.momentum_encoder.load_state_dict(state["momentum_encoder"])
        self.bank.load_state_dict(state["bank"])
        self.generator.set_state(state["generator"])
        if self.refresher is not None:
            self.refresher.load_state_dict(state["refresher"], snapshot)
            self._swap(snapshot)
        self.batches.load_state_dict(state["batches"])
        self.meetings.load_state_dict(state["meetings"])
        self.negatives.load_state_dict(state["negatives"])
        self._stream = self._endless()

    def _swap(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None:
            self.batches.update(snapshot)
            self.negatives.update(snapshot)

    def _endless(self) -> Iterator[list[int]]:
        while True:
            yield from self.batches


def expected(batches: BatchSampler, rows: Tensor) -> Expected | None:
    """What the batches say of the rows (B,) they handed out; None where they are uniform, or say nothing."""
    return functools.partial(batches.expected, rows) if batches.known and not batches.uniform else None


def require_fitting(negatives: NegativeSampler, batches: BatchSampler, encoder: nn.Module) -> None:
    """Raise ValueError for negatives that need to know more of the batches, or fresh queries with batch norm."""
    name = type(batches).__name__.removesuffix("Batches")
    if negatives.requires == "uniform" and not batches.uniform:
        raise ValueError(
            f"negatives: averages and in-batch proposals need uniform batches, which {name} batches are not; take "
            f"proposals='index' or other negatives, or uniform batches"
        )
    if negatives.requires == "known" and not batches.known:
        raise ValueError(
            f"negatives: batch=True weighs rows by how often they meet, which is not known of {name} batches; take "
            f"batch=False, or uniform or drawn batches"
        )
    if negatives.fresh_queries and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules()):
        raise ValueError(
            "negatives: query='fresh' encodes drawn rows in a second pass, where batch statistics tell them from "
            "the anchors; take encoder.norm=group and encoder.projector.norm=none, or query='bank'"
        )
