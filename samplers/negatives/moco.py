"""MoCo: InfoNCE against the keys of a slowly moving encoder (He et al. 2020, eq. 1; Chen et al. 2020b, 2021).

    w_ir = exp(β q_i·k_r) / (exp(β q_i·k_i⁺) + Σ_r' exp(β q_i·k_r')),    θ_k ← m θ_k + (1 − m) θ

q are the encoder's embeddings, with gradient, and k those of its momentum copy, without. An anchor's positive is the
key of its row's other view. The negatives are

    v2    a queue of the newest K keys of past batches; this batch's are enqueued after they were used
    v3    `queue=0`: the keys of the batch's other rows, under the view that the positive is seen under

A queue remembers whose keys it holds: no earlier key of the anchor's own row, nor of an excluded one, is a negative.
The trainer keeps the momentum encoder, as for any sampler that has a `momentum`, and gives its keys in
`EncodedBatch.keys`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from negbank.bank import require_rows
from negbank.bounds import Annotated, Ge, Lt, Positive, checked
from negbank.exclusions import NO_ROW, Exclusions
from negbank.samplers.negatives.contract import (
    EncodedBatch,
    Info,
    Negatives,
    NegativeSampler,
    Ticket,
    hardness,
    keep_nothing,
    number,
)


class Moco(NegativeSampler):
    """MoCo: keys of a momentum encoder, from a queue (v2) or of the batch (v3).

    Args:
        num_rows: N.
        temperature: τ = 1/β.
        queue: K, keys kept; 0: the batch's own, as MoCo v3.
        momentum: m of the momentum encoder; 1 would leave the keys as they were at the start.
        exclude: rows that are no negatives of each other; only the anchor's own row by default.
        device: where the queue lives.
    """

    @checked
    def __init__(
        self,
        num_rows: int,
        *,
        temperature: Positive,
        queue: Annotated[int, Ge(0)] = 4096,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.99,
        exclude: Exclusions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.momentum, self._temperature = momentum, temperature
        self._exclude = (exclude or Exclusions(num_rows)).to(torch.device(device))
        self.ids = torch.full((queue,), NO_ROW, device=device)
        self.keys: Tensor | None = None  # (K, D) from the first batch on, which says what D is
        self.position = 0

    def __call__(self, batch: EncodedBatch, ticket: Ticket | None = None) -> tuple[Negatives, Info]:
        """See `NegativeSampler.__call__`. The columns are the queue's keys, or the batch's.

        Raises:
            ValueError: for a batch without keys.
        """
        require_rows(batch.rows, self._exclude.num_rows)
        if batch.keys is None:
            raise ValueError("batch: has no keys; encode the views with a momentum encoder, too, and pass them as keys")
        if len(self.ids):
            queue = batch.keys.new_zeros(len(self.ids), batch.keys.shape[1]) if self.keys is None else self.keys
            scores = batch.anchors @ queue.T
            allowed = self._exclude.allowed(batch.rows, self.ids.expand(len(batch.rows), -1)).repeat(batch.views, 1)
        else:
            scores = batch.anchors @ batch.keys.T
            allowed = batch.allowed(self._exclude) & _under_other_view(batch)
        with torch.no_grad():
            positive = batch.positive_scores / self._temperature
            logits = (scores / self._temperature).masked_fill_(~allowed, -torch.inf)
            log_sum = torch.logaddexp(logits.logsumexp(1), positive)
            weights = logits.sub_(log_sum[:, None]).exp_()
        commit = partial(self._enqueue, batch) if ticket is None or ticket.last else keep_nothing
        info = {"hardness": hardness(weights, scores), "keys": number(allowed[0].sum())}
        return Negatives(scores, weights, commit=commit), info

    @torch.no_grad()
    def _enqueue(self, batch: EncodedBatch) -> None:
        """Put the batch's keys (V·B, D) in place of the oldest."""
        size = len(self.ids)
        if size == 0 or batch.keys is None:
            return
        if self.keys is None:
            self.keys = batch.keys.new_zeros(size, batch.keys.shape[1])
        rows, keys = batch.batch_rows.repeat(batch.views)[-size:], batch.keys.detach()[-size:]
        at = (self.position + torch.arange(len(rows), device=rows.device)) % size
        self.ids[at], self.keys[at] = rows, keys.to(self.keys)
        self.position = (self.position + len(rows)) % size

    def state_dict(self) -> dict[str, Any]:
        """The queue: ids (K,), keys (K, D) if there were any yet, and where the next one goes."""
        keys = None if self.keys is None else self.keys.clone()
        return {"ids": self.ids.clone(), "keys": keys, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the queue.

        Raises:
            ValueError: when it is of another length.
        """
        if state["ids"].shape != self.ids.shape:
            raise ValueError(f"queue: {len(state['ids'])} keys in the state, {len(self.ids)} here")
        self.ids.copy_(state["ids"])
        self.keys = None if state["keys"] is None else state["keys"].to(self.ids.device, copy=True)
        self.position = state["position"]


def _under_other_view(batch: EncodedBatch) -> Tensor:
    """(A, C) bool: whether a key is seen under another view than the anchor; with one view all are."""
    view = torch.arange(batch.views, device=batch.rows.device)
    mine, theirs = view.repeat_interleave(len(batch.rows)), view.repeat_interleave(len(batch.batch_rows))
    return (mine[:, None] != theirs) | (batch.views == 1)
