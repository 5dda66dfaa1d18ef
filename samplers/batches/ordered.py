"""Ordered SGD: of k shuffled batches, the q of the highest loss.

Kawaguchi & Lu, Ordered SGD (AISTATS 2020), arXiv 1907.04371, on batches of a contrastive loss as in Cho et al.,
Mini-Batch Optimization of Contrastive Loss (2023), arXiv 2307.05906, of unit rows u and their positives v
(β = 1/temperature):

    L(batch) = −(1/B) Σ_i log softmax_j(β u_i·v_j)[i]  −  (1/B) Σ_i log softmax_j(β v_i·u_j)[i]

There k = 1500 and q = 150 for B = 32. The scores come from the snapshot, without a forward pass, or fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from negbank.bounds import Annotated, Count, Ge, Gt, Labels, Supplied, checked
from negbank.counter import Counter
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot

Encode = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
"""Rows (n,) long on the CPU to embeddings (n, D), or to those of two views of each row."""
ENCODED = 1024
"""Rows encoded at once."""
SCORES = 1 << 22
"""Similarities held at once."""


class Ordered(Planned):
    """OSGD: of `pool` random batches the `keep` of highest loss.

    The epoch's rows are shuffled into N // B batches, in pools of k of which only the q hardest are handed out. A row
    comes at most once a plan, and no batch planned holds a row handed out earlier in the epoch; q/k of all rows come.
    When a newer snapshot comes in, all rows not handed out have another chance.

    Args:
        num_rows: N.
        batch_size: B, rows a batch; each is seen under two views.
        temperature: τ = 1/β of the loss they are ordered by; None: loss.temperature.
        pool: k, random batches that are scored together. The last pool of a plan may have fewer.
        keep: q, how many of them are trained on; of the last one, what is missing to `len(self)` batches.
        score: bank: no forward pass, `vectors` as u and `positives` as v, v = u where there are none; fresh: all rows
            are encoded.
        groups: integer labels (N,), negative for none, of which few may meet in a batch.
        max_per_group: rows of one label that may meet in a batch; with groups.
        encode: gives fresh embeddings to score with, called without gradients when a plan is made, `ENCODED` rows at a
            time; the caller sees to evaluation mode.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: for a keep above pool, score="fresh" without `encode`, and as `Planned`.
    """

    disjoint = False  # in the sense of `Planned`: an epoch is chosen from all rows, not dealt from its share of them
    searches = False

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        temperature: Annotated[float, Gt(0), Supplied("loss.temperature")],
        pool: Count = 1500,
        keep: Count = 150,
        score: Literal["bank", "fresh"] = "bank",
        groups: Annotated[Tensor | None, Labels()] = None,
        max_per_group: Count | None = None,
        encode: Encode | None = None,
        counter: Counter = Counter.of(0),
    ) -> None:
        if keep > pool:
            raise ValueError(f"keep={keep}: expected 1..{pool}, batches of a pool; lower keep or raise pool")
        if score == "fresh" and encode is None:
            raise ValueError("score='fresh': needs `encode`, or take score='bank'")
        self.temperature, self.pool, self.keep = temperature, pool, keep
        self.encode = encode if score == "fresh" else None
        super().__init__(num_rows, batch_size, groups, max_per_group, counter=counter)

    def __len__(self) -> int:
        """Batches an epoch: q of every k, in proportion for what is left over of N // B batches; at least one."""
        whole, left = divmod(self.num_rows // self.batch_size, self.pool)
        return max(1, whole * self.keep + left * self.keep // self.pool)

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`. O(R·B·D), and a forward pass over R rows with `encode`."""
        fresh = torch.ones(self.num_rows, dtype=torch.bool)
        fresh[self._order[: self._handed_out * self.batch_size]] = False
        rows = rows[fresh[rows]]
        total = len(rows) // self.batch_size
        if not total:  # all that the snapshot holds was handed out already
            return rows.new_empty(0, self.batch_size)
        order = torch.randperm(len(rows), generator=generator)[: total * self.batch_size]
        batches = rows[order].view(-1, self.batch_size)
        u, v = self._views(rows, snapshot)
        losses = batch_losses(u, v, order.view(-1, self.batch_size), self.temperature)
        pools = list(zip(losses.split(self.pool), batches.split(self.pool)))
        kept = [batches[:0]]
        for nth, (scored, pool) in enumerate(pools, start=1):
            missing = count - sum(len(part) for part in kept)
            share = missing if nth == len(pools) else min(self.keep, missing)
            kept.append(pool[scored.topk(min(share, len(pool))).indices])
        return torch.cat(kept)

    def _views(self, rows: Tensor, snapshot: Snapshot) -> tuple[Tensor, Tensor]:
        """u and v (R, D) of rows (R,)."""
        if self.encode is None:
            at = rows.to(snapshot.vectors.device)
            u = snapshot.vectors[at]
            return u, u if snapshot.positives is None else snapshot.positives[at]
        with torch.no_grad():
            parts = [self.encode(part) for part in rows.split(ENCODED)]
        if isinstance(parts[0], Tensor):
            u = normalize(torch.cat(parts).float(), dim=1)  # type: ignore[arg-type]
            return u, u
        first, second = (normalize(torch.cat(view).float(), dim=1) for view in zip(*parts))
        return first, second


def batch_losses(u: Tensor, v: Tensor, batches: Tensor, temperature: float) -> Tensor:
    """L of batches (n, B) of rows of u and v (R, D), unit: (n,) in nats, on the CPU."""
    size = batches.shape[1]
    losses = []
    for rows in batches.to(u.device).split(max(1, SCORES // size**2)):
        s = u[rows] @ v[rows].mT / temperature
        own = s.diagonal(dim1=1, dim2=2)
        losses.append((s.logsumexp(2) + s.logsumexp(1) - 2 * own).mean(1))
    return torch.cat(losses).cpu() if losses else torch.empty(0)
