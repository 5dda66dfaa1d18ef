"""How stale a snapshot is where it matters: fresh similarities of some anchors to the rows a proposal would look at.

Of two towers the anchors are one's and the snapshot is the other's: they are then encoded each by its own.
"""

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
    queries: Tensor | None = None,
    encode_queries: Callable[[Tensor], Tensor] | None = None,
    exclude: Exclusions | None = None,
    generator: torch.Generator | None = None,
) -> Probe:
    """Encode the anchors, and a pool of `draws` rows drawn from the mean of their top-k softmaxes with a floor.

    Args:
        snapshot: whose staleness is measured.
        rows: (P,) the anchors' rows.
        encode: rows (B,) → embeddings (B, D) of the current encoder, without gradient.
        temperature: τ of the target; of the softmax over stale scores that draws the pool, too.
        draws: rows of the pool; at most P + draws rows are encoded.
        fresh_queries: whether the proposal will be searched with fresh embeddings, and not with bank rows.
        queries: (P, D) what the bank of the anchors' tower holds of them; the snapshot's rows by default.
        encode_queries: as `encode`, by the anchors' tower; `encode` by default.
        exclude: what may not be drawn; the anchor's own row by default.
        generator: of the pool; on the CPU.
    """
    anchors = Anchors(rows, snapshot.vectors[rows] if queries is None else queries)
    head = Nearest(snapshot, min(HEAD, len(snapshot) - 1), temperature, FLOOR, exclude=exclude)
    pool = Pooled(head)(anchors)
    ids = pool.sample(draws, generator=generator)
    asked = ids if encode_queries is not None else torch.cat((ids, rows))
    distinct, at = asked.unique(return_inverse=True)
    theirs, mine = unit_rows(encode(distinct))[at].tensor_split((len(ids),))
    if encode_queries is not None:
        mine = unit_rows(encode_queries(rows))
    probed = Anchors(rows, mine) if fresh_queries else anchors
    return Probe(probed, ids, pool.log_prob(ids), mine @ theirs.T)
