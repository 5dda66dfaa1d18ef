"""Batches of rows that a spectral clustering finds hard for each other.

Cho et al., Mini-Batch Optimization of Contrastive Loss (2023), arXiv 2307.05906: batches of high contrastive loss are
clusters of a graph. Its nodes are rows, with unit embeddings u and those of their positives v (β = 1/temperature):

    w_ij = Σ over (i,j), (j,i) of  log(1 + (B−1) e^{β(u_i·v_j − u_i·v_i)}) + log(1 + (B−1) e^{β(v_i·u_j − v_i·u_i)})
    affinity e^w,   L = I − D^{−1/2} e^w D^{−1/2},   k-means on the k lowest eigenvectors of L, each row over √D_ii

made equal in size: rows are assigned to the k centres, B each, at the least sum of distances. The sum is exact, e^w is
never formed (only e^w / √(D_ii D_jj), from logarithms), and the solver for it is the one of `partition.assign`.

As published that is done in random groups of k·B rows: O((kB)³) a group, and a row only meets rows of its own group.
`scope="global"` keeps the aim, high affinity in batches of B, over all rows at once: balanced k-means on the unit rows
themselves (`partition.cut`), which kept more of it a second than spectral embeddings, graph partitions and bisections
of the kNN graph did (benchmarks/batches_spectral.py).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

from negbank.bounds import Annotated, Count, Ge, Gt, Labels, Supplied, checked
from negbank.counter import Counter
from negbank.index.kmeans import closeness, lloyd
from negbank.samplers.batches.partition import assign, cut
from negbank.samplers.batches.planned import Planned
from negbank.snapshot import Snapshot

ITERATIONS = 300
"""Of k-means on an embedding, which as a rule ends long before."""


class Spectral(Planned):
    """Spectral clusters of exactly B rows, of the snapshot's `vectors` as u and `positives` as v.

    Where the snapshot has no positives each row is its own: v = u, and u_i·v_i = 1.

    Args:
        num_rows: N.
        batch_size: B, rows a batch; each is seen under two views.
        temperature: τ = 1/β of the affinity; None: loss.temperature. Of no influence on global batches.
        scope: groups: random groups of group·B rows, as published; global: all rows, by their mean over both views.
        group: k, batches a group; the last group of a plan may have fewer.
        restarts: runs of k-means a group, of which the best is kept.
        groups: integer labels (N,), negative for none, of which few may meet in a batch.
        max_per_group: rows of one label that may meet in a batch; with groups.
        drop_last: the last, smaller batch of an epoch is left out; its rows, drawn at random, wait for another epoch.
        counter: place of the random draws, of which each plan has its own.

    Raises:
        ValueError: as `Planned`.
    """

    searches = False

    @checked
    def __init__(
        self,
        num_rows: int,
        batch_size: Annotated[int, Ge(2)] = 64,
        *,
        temperature: Annotated[float, Gt(0), Supplied("loss.temperature")],
        scope: Literal["groups", "global"] = "groups",
        group: Count = 40,
        restarts: Count = 10,
        groups: Annotated[Tensor | None, Labels()] = None,
        max_per_group: Count | None = None,
        drop_last: bool = True,
        counter: Counter = Counter.of(0),
    ) -> None:
        super().__init__(num_rows, batch_size, groups, max_per_group, drop_last=drop_last, counter=counter)
        self.temperature, self.scope, self.group, self.restarts = temperature, scope, group, restarts

    def plan(self, rows: Tensor, count: int, snapshot: Snapshot, generator: torch.Generator) -> Tensor:
        """See `Planned.plan`."""
        at = rows.to(snapshot.vectors.device)
        u = snapshot.vectors[at]
        v = u if snapshot.positives is None else snapshot.positives[at]
        if self.scope == "global":
            return rows[cut(u if v is u else normalize(u + v, dim=1), self.batch_size, generator)]
        order = torch.randperm(len(rows), generator=generator)
        batches = []
        for members in order.split(self.group * self.batch_size):
            w = log_affinity(u[members], v[members], self.batch_size, self.temperature)
            part = equal_clusters(w, self.batch_size, generator, self.restarts)
            batches.append(rows[members[part.argsort(stable=True)]].view(-1, self.batch_size))
        return torch.cat(batches)


def log_affinity(u: Tensor, v: Tensor, batch_size: int, temperature: float) -> Tensor:
    """w (n, n) of unit rows u and their positives v (n, D), float64: the affinity's logarithm."""
    s = u.double() @ v.double().T / temperature
    harder = s - s.diagonal()[:, None] + math.log(batch_size - 1)
    w = softplus(harder) + softplus(s.T - s.diagonal()[:, None] + math.log(batch_size - 1))
    return w + w.T


def embedding(w: Tensor, k: int) -> Tensor:
    """Rows (n, k) of D^{−1/2} times the k eigenvectors of L with the lowest eigenvalues, up to one factor for all.

    Args:
        w: (n, n) symmetric, logarithms of affinities. Those on the diagonal are of no influence.
        k: at most n.
    """
    w = w.clone().fill_diagonal_(-torch.inf)
    log_degree = w.logsumexp(1)
    normalised = torch.exp(w - (log_degree[:, None] + log_degree) / 2)
    _, vectors = torch.linalg.eigh(normalised)  # ascending, and L = I − normalised
    return vectors[:, -k:] * torch.exp((log_degree.min() - log_degree) / 2)[:, None]


def centres(maps: Tensor, k: int, generator: torch.Generator, restarts: int = 10) -> Tensor:
    """The k centres (k, E) of least Σ min_c |x − c|² over rows (n, E), of several runs of k-means from k-means++."""
    best, lowest = maps[:k], math.inf
    for _ in range(restarts):
        found = lloyd(maps, _spread_seeds(maps, k, generator), ITERATIONS)
        inertia = float((maps.square().sum(1) - 2 * closeness(maps, found).max(1).values).sum())
        if inertia < lowest:
            best, lowest = found, inertia
    return best


def _spread_seeds(maps: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): candidates with probability ∝ squared distance to the nearest
    seed, of which the one that lowers the sum of these most is the next."""
    candidates = 2 + int(math.log(k))
    chosen = [int(torch.randint(len(maps), (), generator=generator))]
    squared = (maps - maps[chosen[0]]).square().sum(1)
    for _ in range(k - 1):
        weights = squared if float(squared.max()) > 0 else torch.ones_like(squared)
        tried = torch.multinomial(weights, candidates, replacement=True, generator=generator)
        left = torch.minimum(squared, (maps - maps[tried, None]).square().sum(2))
        best = int(left.sum(1).argmin())
        squared = left[best]
        chosen.append(int(tried[best]))
    return maps[chosen]


def equal_clusters(w: Tensor, size: int, generator: torch.Generator, restarts: int = 10) -> Tensor:
    """Labels (n,) 0 … n / size − 1 of the spectral clusters of a graph, made equal in size.

    Args:
        w: (n, n) logarithms of affinities.
        size: rows of a cluster; divides n.
    """
    k = len(w) // size
    if k == 1:
        return torch.zeros(len(w), dtype=torch.int64)
    maps = embedding(w, k).cpu()
    distances = torch.cdist(maps, centres(maps, k, generator, restarts))
    return assign(-distances, torch.full((k,), size))
