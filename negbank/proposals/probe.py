"""How stale a snapshot is where it matters: fresh similarities of probe rows to the rows a proposal would look at."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from negbank.bank import unit_rows
from negbank.exclusions import Exclusions
from negbank.proposals.adapt import Probe
from negbank.proposals.contract import Anchors
from negbank.proposals.nearest import Nearest
from negbank.proposals.pooled import Pooled
from negbank.snapshot import Snapshot

HEAD = 64
FLOOR = 0.3


def measure(
    snapshot: Snapshot,
    rows: Tensor,
    encode: Callable[[Tensor], Tensor],
    *,
    temperature: float = 0.07,
    draws: int = 512,
    fresh_queries: bool = False,
    exclude: Exclusions | None = None,
    generator: torch.Generator | None = None,
) -> Probe:
    """Encode the probe rows, and a pool of `draws` rows drawn from the mean of their top-k softmaxes with a floor.

    Args:
        snapshot: whose staleness is measured.
        rows: (P,) probe rows.
        encode: rows (B,) → embeddings (B, D) of the current encoder, without gradient.
        temperature: τ of the target; of the softmax over stale scores that draws the pool, too.
        draws: pool rows; at most P + draws rows are encoded.
        fresh_queries: whether the proposal will be searched with fresh embeddings, and not with bank rows.
        exclude: what may not be drawn; the probe's own row by default.
        generator: of the pool; on the CPU.
    """
    anchors = Anchors(rows, snapshot.vectors[rows])
    head = Nearest(snapshot, min(HEAD, len(snapshot) - 1), temperature, FLOOR, exclude=exclude)
    pool = Pooled(head)(anchors)
    ids = pool.sample(draws, generator=generator)
    distinct, at = torch.cat((rows, ids)).unique(return_inverse=True)
    fresh = unit_rows(encode(distinct))[at]
    mine, theirs = fresh.split((len(rows), len(ids)))
    queries = mine if fresh_queries else anchors.queries
    return Probe(Anchors(rows, queries), ids, pool.log_prob(ids), mine @ theirs.T)
