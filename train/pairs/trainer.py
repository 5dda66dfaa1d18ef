"""One optimisation step of two encoders on pairs (l_i, r_i), contrasted both ways, s_ij = l_i · r_j:

    F = ½ mean_i (−β s_ii + log mean_{j∈D_i} exp(β s_ij))  +  ½ mean_i (−β s_ii + log mean_{j∈D_i} exp(β s_ji))

    rows → each side's negatives.draw(rows, its bank rows) → rows of the *other* side
      → one forward pass a side, over rows and what was drawn of it → EncodedBatch.from_pairs, both ways
      → negatives(batch): scores, weights → mean of two surrogates → optimiser → both banks, both refreshers

A side's anchors are searched for in the other side's snapshot, with the side's own bank rows as queries, or (fresh
queries) with its embeddings of this step: then drawn rows are encoded in a second pass. Each direction has a sampler
of its own, with its own chains, averages or learned temperature. The two encoders may be one and the same module.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from negbank.samplers.batches import BatchSampler
from negbank.samplers.negatives import EncodedBatch, NegativeSampler
from negbank.train.descent import Descent
from negbank.train.losses import info_nce, surrogate
from negbank.train.measures import mean_cosine
from negbank.train.trainer import expected, require_fitting
from torch import Tensor, nn

from negbank import EmbeddingBank, Refresher, Snapshot
from negbank.refresh import RefreshReport

Read = Callable[[Tensor, torch.Generator | None], Any]
"""Rows (n,) on the CPU → an encoder's input, where the encoder is; with a generator under a random view drawn by it."""
NAMES = ("left", "right")
BLOCK = 1024
"""Rows encoded at once outside of training steps."""


@dataclass
class Side:
    """One of the two.

    encoder: inputs → unit embeddings (n, D). read: see `Read`. bank: its embeddings, one row a pair. negatives: of
    this side's anchors, among rows of the other side. refresher: of this side's bank, for the other side's negatives;
    None when no sampler asks for one.
    """

    encoder: nn.Module
    read: Read
    bank: EmbeddingBank
    negatives: NegativeSampler
    refresher: Refresher | None = None

    def encode(self, rows: Tensor) -> Tensor:
        """Embeddings (n, D) of rows (n,), without random views and without gradient."""
        return encode(self.encoder, self.read, rows)


@torch.no_grad()
def encode(encoder: nn.Module, read: Read, rows: Tensor) -> Tensor:
    """See `Side.encode`."""
    encoder.eval()
    return torch.cat([encoder(read(part.cpu(), None)) for part in rows.split(BLOCK)])


class PairTrainer:
    """Steps two encoders on the two-way contrastive loss of their negative samplers.

    Args:
        left, right: the two sides; row i of one is the positive of row i of the other.
        batches: which rows meet; of the samplers that look at a snapshot, at the left one.
        optimiser: over both encoders and what the negatives learn; its groups' learning rates are the peaks.
        schedule: step → factor of the peak learning rates.
        temperature: τ of the loss.
        generator: of random views, on the CPU.
        device: where rows live.
        autocast: the precision of forward passes.

    Raises:
        ValueError: for sides of different sizes, negatives with a momentum encoder, in-batch proposals under batches
            that are not uniform, or fresh queries with batch statistics.
    """

    def __init__(
        self,
        left: Side,
        right: Side,
        *,
        batches: BatchSampler,
        optimiser: torch.optim.Optimizer,
        schedule: Callable[[int], float],
        temperature: float,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        shapes = [tuple(side.bank.vectors.shape) for side in (left, right)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"left, right: banks of shapes {shapes[0]} and {shapes[1]}; pairs need as many rows on both sides and "
                f"embeddings of one width: give the encoders a projection to one"
            )
        for side in (left, right):
            if side.negatives.momentum is not None:
                raise ValueError(
                    f"negatives: momentum={side.negatives.momentum} needs a slow copy of each encoder, which pairs do "
                    f"not keep; take other negatives"
                )
            for each in (left, right):
                require_fitting(side.negatives, batches, each.encoder)
        self.left, self.right, self.batches = left, right, batches
        self.descent, self.temperature = Descent(optimiser, schedule), temperature
        self.generator, self.device, self.autocast = generator, torch.device(device), autocast
        self.encodings = 0
        self._ways = ((left, right), (right, left))
        self._stream = itertools.chain.from_iterable(itertools.repeat(batches))

    def refresh(self) -> tuple[RefreshReport | None, RefreshReport | None]:
        """Let both refreshers look at the step, and pass a side's new snapshot on to the other side's negatives."""
        reports = []
        for side, _ in self._ways:
            report = None
            if side.refresher is not None:
                with self.descent.timed("refresh"):
                    report = side.refresher.step(self.descent.step_number)
                    if report is not None and report.swapped:
                        self._swap(side, side.refresher.snapshot)
            reports.append(report)
        return reports[0], reports[1]

    def step(self) -> dict[str, float]:
        """One optimisation step; its metrics, those of a direction under its anchors' side.

        Raises:
            NonFiniteError: before anything is changed by a loss, embedding or gradient that is not finite.
        """
        with self.descent.timed("data"):
            rows = torch.tensor(next(self._stream), device=self.device)
        asked = [rows[:0], rows[:0]]  # by each side's negatives, of the other side
        for way, (side, _) in enumerate(self._ways):
            if not side.negatives.fresh_queries:
                with self.descent.timed("draw"):
                    asked[way] = side.negatives.draw(rows, side.bank.read(rows))
        embedded = [self._embed(side, torch.cat((rows, ids))) for (side, _), ids in zip(self._ways, asked[::-1])]
        for way, (side, other) in enumerate(self._ways):
            if side.negatives.fresh_queries:
                with self.descent.timed("draw"):
                    asked[way] = side.negatives.draw(rows, embedded[way][: len(rows)].detach())
                if len(asked[way]):
                    embedded[1 - way] = torch.cat((embedded[1 - way], self._embed(other, asked[way])))
        with self.descent.timed("negatives"):
            loss, value, info = self._contrast(rows, asked, embedded)
            self.descent.require_finite(torch.stack((loss.detach(), value))[None], rows, "loss")
        rate = self.descent(loss, rows)
        with self.descent.timed("bank"):
            for (side, _), ids, found in zip(self._ways, asked[::-1], embedded):
                side.bank.write(torch.cat((rows, ids)), found.detach(), step=self.descent.step_number)
                self.encodings += len(found)
        return {"loss": float(value), "lr": rate, **info}

    def _contrast(
        self, rows: Tensor, asked: list[Tensor], embedded: list[Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, float]]:
        """The surrogate, the two-way InfoNCE over the batch, and what is reported."""
        losses, values, info = [], [], {}
        for way, (side, _) in enumerate(self._ways):
            anchors, (keys, drawn) = embedded[way][: len(rows)], embedded[1 - way].split((len(rows), len(asked[way])))
            batch = EncodedBatch.from_pairs(rows, anchors, keys, asked[way], drawn, expected(self.batches, rows))
            negatives, found = side.negatives(batch)
            losses.append(surrogate(batch, negatives, temperature=self.temperature))
            values.append(info_nce(batch, temperature=self.temperature))
            info[f"{NAMES[way]}_mean_cosine"] = mean_cosine(anchors)
            info |= {f"{NAMES[way]}_{name}": number for name, number in found.items()}
            info["positive"] = float((anchors * keys).detach().sum(-1).mean())
        return torch.stack(losses).mean(), torch.stack(values).mean(), info

    def _embed(self, side: Side, rows: Tensor) -> Tensor:
        """One random view of rows (n,), in one pass: (n, D)."""
        with self.descent.timed("data"):
            inputs = side.read(rows.cpu(), self.generator)
        with self.descent.timed("forward"):
            side.encoder.train()
            with self.autocast():
                embeddings: Tensor = side.encoder(inputs)
            self.descent.require_finite(embeddings, rows, "embedding")
        return embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs but the two snapshots, which are saved beside it."""
        sides = [
            {
                "encoder": side.encoder.state_dict(),
                "bank": side.bank.state_dict(),
                "negatives": side.negatives.state_dict(),
                "refresher": None if side.refresher is None else side.refresher.state_dict(),
            }
            for side, _ in self._ways
        ]
        return {
            **self.descent.state_dict(),
            "encodings": self.encodings,
            "sides": sides,
            "batches": self.batches.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any], snapshots: tuple[Snapshot | None, Snapshot | None]) -> None:
        """Restore `state_dict`, with the snapshots of left and right that were in use."""
        self.descent.load_state_dict(state)
        self.encodings = state["encodings"]
        self.generator.set_state(state["generator"])
        for (side, _), saved, snapshot in zip(self._ways, state["sides"], snapshots):
            side.encoder.load_state_dict(saved["encoder"])
            side.bank.load_state_dict(saved["bank"])
            if side.refresher is not None:
                side.refresher.load_state_dict(saved["refresher"], snapshot)
                self._swap(side, snapshot)
        self.batches.load_state_dict(state["batches"])
        for (side, _), saved in zip(self._ways, state["sides"]):
            side.negatives.load_state_dict(saved["negatives"])
        self._stream = itertools.chain.from_iterable(itertools.repeat(self.batches))

    def _swap(self, side: Side, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        other = self.right if side is self.left else self.left
        other.negatives.update(snapshot)
        if side is self.left:
            self.batches.update(snapshot)
