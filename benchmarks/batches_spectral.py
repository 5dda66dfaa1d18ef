"""Batches of B near rows: mean mini-batch loss against seconds, by way of cutting a data set into them.

    python benchmarks/batches_spectral.py [--rows 10240 --batch-size 32] [--runs 3] [--skip published groups]
    python benchmarks/batches_spectral.py --rows 100000 --batch-size 256 --skip published groups
    python benchmarks/batches_spectral.py --rows 100000 --batch-size 256 --centres 1000 --tail 0.8 --noise 0.55 ...
    python benchmarks/batches_spectral.py --rows 10240 --batch-size 256 --group 40 ...: one group of the published size

Data: unit rows, D = 128, around 200 unit Gaussian centres whose shares fall as rank^−0.5, with Gaussian noise of length
0.56, so that two rows of a centre have cosine 0.76 on average. Uniform batches of B = 256 then have a loss of 0.18.

Loss: (1/B) Σ_i log(1 + Σ_{j≠i} exp(β(s_ij − 1))) in nats, β = 10, mean over all batches: InfoNCE with each row as its
own positive. Every way gives N // B disjoint batches of exactly B. Seconds are of the process, so that a busy machine
does not count (set OMP_NUM_THREADS=1), medians of the runs; those of the 15-NN graph
(`Snapshot.build(...).index.graph(15)`), where one is needed, stand apart. METIS: pip install "negbank[bench]".
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numba
import numpy as np
import torch
from needs import need
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.manifold import spectral_embedding
from torch import Tensor
from torch.nn.functional import normalize

from negbank import Snapshot
from negbank.index.kmeans import closeness, lloyd, means
from negbank.samplers.batches import Spectral
from negbank.samplers.batches.partition import assign, cut

BETA, NEIGHBORS = 10.0, 15
Edges = tuple[Tensor, Tensor, Tensor]
"""A symmetric graph in CSR form: pointers (N + 1,), rows and weights (E,)."""


def clustered(rows: int, centres: int, tail: float, noise: float, generator: torch.Generator, dim: int = 128) -> Tensor:
    """Unit rows (rows, dim) around centres of unequal shares."""
    middle = normalize(torch.randn(centres, dim, generator=generator), dim=1)
    shares = torch.arange(1, centres + 1, dtype=torch.float64) ** -tail
    own = torch.multinomial(shares, rows, replacement=True, generator=generator)
    return normalize(middle[own] + noise / dim**0.5 * torch.randn(rows, dim, generator=generator), dim=1)


def loss(z: Tensor, batches: Tensor) -> float:
    """Mean over batches (n, B) of the InfoNCE excess, and a check that they are batches."""
    assert batches.shape[0] == len(z) // batches.shape[1]
    assert batches.flatten().unique().numel() == batches.numel()
    total = 0.0
    for rows in batches.split(64):
        s = torch.exp(BETA * (z[rows] @ z[rows].mT - 1))
        s.diagonal(dim1=1, dim2=2).zero_()
        total += float(torch.log1p(s.sum(2)).mean(1).sum())
    return total / len(batches)


def published(z: Tensor, size: int, group: int, generator: torch.Generator) -> Tensor:
    """Random groups of k·B rows, each as the published code does it, with scikit-learn and SciPy."""
    batches = []
    for rows in torch.randperm(len(z), generator=generator)[: len(z) // size * size].split(group * size):
        k = len(rows) // size
        s = BETA * (z[rows] @ z[rows].T).double().numpy()
        w = np.log(1 + (size - 1) * np.exp(s - np.diag(s)[:, None]))
        w += np.log(1 + (size - 1) * np.exp(s.T - np.diag(s)[:, None]))
        maps = spectral_embedding(np.exp(w + w.T), n_components=k, eigen_solver="arpack", drop_first=False)
        centres = KMeans(k, n_init=10).fit(maps).cluster_centers_
        part = linear_sum_assignment(cdist(maps, np.repeat(centres, size, 0)))[1] // size
        batches.append(rows[torch.from_numpy(np.argsort(part, kind="stable"))].view(k, size))
    return torch.cat(batches)


def bisected(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Halves along the first principal component, again and again."""

    def halve(rows: Tensor) -> list[Tensor]:
        if len(rows) == size:
            return [rows]
        centred = x[rows] - x[rows].mean(0)
        axis = torch.randn(x.shape[1], generator=generator)
        for _ in range(6):
            axis = normalize(centred.T @ (centred @ axis), dim=0)
        ordered = rows[(centred @ axis).argsort()]
        middle = len(rows) // size // 2 * size
        return halve(ordered[:middle]) + halve(ordered[middle:])

    return torch.stack(halve(torch.randperm(len(x), generator=generator)[: len(x) // size * size]))


def rounded(z: Tensor, size: int, generator: torch.Generator, fan: int = 64, leaf: int = 4) -> Tensor:
    """Balanced k-means that carries nothing over: the sizes of its cells are made multiples of B by moving rows."""

    def split(rows: Tensor) -> list[Tensor]:
        count = len(rows) // size
        if count == 1:
            return [rows]
        cells = count if count <= leaf else min(fan, -(-count // leaf))
        x = z[rows]
        close = closeness(x, lloyd(x[: 256 * cells], x[:cells], 8))
        sizes = torch.bincount(close.argmax(1), minlength=cells)
        most = 1 if cells == count else -(-count // 2)
        shares = (sizes // size).clamp(max=most)
        while int(shares.sum()) < count:
            shares[torch.where(shares < most, sizes - shares * size, -len(rows)).argmax()] += 1
        part = assign(close, shares * size)
        for _ in range(3 if cells == count else 0):
            close = closeness(x, means(x, part, x[:cells]))
            part = assign(close, shares * size)
        inside = rows[part.argsort(stable=True)].split((shares * size).tolist())
        return [batch for cell in inside if len(cell) for batch in split(cell)]

    return torch.stack(split(torch.randperm(len(z), generator=generator)[: len(z) // size * size]))


def symmetric(ids: Tensor, scores: Tensor) -> Edges:
    """Edges of a kNN graph (N, k) in both directions, of weight exp(β(s − 1))."""
    count, k = ids.shape
    left, right = torch.arange(count).repeat_interleave(k), ids.flatten()
    pairs = torch.cat((left * count + right, right * count + left))
    pairs, at = pairs.unique(return_inverse=True)
    weights = torch.zeros(len(pairs)).index_copy_(0, at, torch.exp(BETA * (scores.flatten() - 1)).repeat(2))
    return torch.searchsorted(pairs, torch.arange(count + 1) * count), pairs % count, weights


def spectral_map(edges: Edges, generator: torch.Generator, dim: int = 32, rounds: int = 20) -> Tensor:
    """Unit rows of the leading eigenvectors of D^{−1/2} W D^{−1/2}, by subspace iteration on (I + ·)/2."""
    pointers, rows, weights = edges
    count = len(pointers) - 1
    left = torch.arange(count).repeat_interleave(pointers.diff())
    degree = torch.zeros(count).index_add_(0, left, weights)
    values = weights / (degree[left] * degree[rows]).sqrt()
    graph = torch.sparse_csr_tensor(pointers, rows, values, (count, count), check_invariants=False)
    basis = torch.randn(count, 2 * dim, generator=generator)
    for done in range(1, rounds + 1):
        basis = (basis + graph @ basis) / 2
        if done % 5 == 0:
            basis, _ = torch.linalg.qr(basis)
    _, vectors = torch.linalg.eigh(basis.T @ (graph @ basis))
    return normalize(basis @ vectors[:, -dim:] / degree.sqrt()[:, None], dim=1)


def metis(z: Tensor, edges: Edges, size: int) -> Tensor:
    """METIS, and what it left unequal made equal: rows far from their part's mean move to parts with room."""
    import pymetis

    pointers, rows, weights = (t.numpy() for t in edges)
    whole = np.maximum(1, 1000 * weights).astype(np.int64)
    count = len(z) // size
    _, found = pymetis.part_graph(count, xadj=pointers, adjncy=rows, eweights=whole)
    part = torch.tensor(found)
    centres = means(z, part, torch.zeros(count, z.shape[1]))
    near = (z * centres[part]).sum(1)
    order = near.argsort(descending=True)
    order = order[part[order].argsort(stable=True)]  # by part, near rows first
    sizes = torch.bincount(part, minlength=count)
    rank = torch.arange(len(z)) - (sizes.cumsum(0) - sizes)[part[order]]
    spare = order[rank >= size]
    spare = spare[near[spare].argsort(descending=True)][: count * size - int((rank < size).sum())]
    part[order[rank >= size]] = -1
    part[spare] = assign(closeness(z[spare], centres), size - sizes.clamp(max=size))
    kept = (part >= 0).nonzero().flatten()
    return kept[part[kept].argsort(stable=True)].view(count, size)


def swapped(batches: Tensor, edges: Edges, sweeps: int = 2) -> Tensor:
    """Rows change places while that brings more weight of edges into batches."""
    part = np.full(len(edges[0]) - 1, -1)
    part[batches.flatten().numpy()] = np.repeat(np.arange(len(batches)), batches.shape[1])
    members = batches.numpy().copy()
    _swap(*(t.numpy() for t in edges), part, members, sweeps)
    return torch.from_numpy(members)


@numba.njit(cache=True)
def _swap(
    pointers: np.ndarray, rows: np.ndarray, weights: np.ndarray, part: np.ndarray, members: np.ndarray, sweeps: int
) -> None:
    count, size = members.shape
    slot, own, to = np.zeros(len(part), np.int64), np.zeros(len(part)), np.zeros(count)
    for a in range(count):
        for t in range(size):
            i = members[a, t]
            slot[i] = t
            for e in range(pointers[i], pointers[i + 1]):
                if part[rows[e]] == a:
                    own[i] += weights[e]
    for _ in range(sweeps):
        for i in range(len(part)):
            a, b, best = part[i], -1, own[i]
            if a < 0:
                continue
            for e in range(pointers[i], pointers[i + 1]):
                p = part[rows[e]]
                if p >= 0 and p != a:
                    to[p] += weights[e]
                    if to[p] > best:
                        b, best = p, to[p]
            for e in range(pointers[i], pointers[i + 1]):
                if part[rows[e]] >= 0:
                    to[part[rows[e]]] = 0.0
            if b < 0:
                continue
            gains = np.zeros(size)  # of each row of b, that comes to a in turn
            for x in members[a]:
                for e in range(pointers[x], pointers[x + 1]):
                    if part[rows[e]] == b:
                        gains[slot[rows[e]]] += weights[e]
            for e in range(pointers[i], pointers[i + 1]):
                if part[rows[e]] == b:
                    gains[slot[rows[e]]] -= 2 * weights[e]
            for t in range(size):
                gains[t] -= own[members[b, t]]
            j = members[b, gains.argmax()]
            if gains.max() + best - own[i] <= 1e-6:
                continue
            members[a, slot[i]], members[b, slot[j]] = j, i
            slot[i], slot[j] = slot[j], slot[i]
            for x, old, new in ((i, a, b), (j, b, a)):
                part[x], own[x] = new, 0.0
                for e in range(pointers[x], pointers[x + 1]):
                    y = rows[e]
                    if part[y] == old:
                        own[y] -= weights[e]
                    elif part[y] == new:
                        own[y] += weights[e]
                        own[x] += weights[e]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=10_240)
    arguments.add_argument("--batch-size", type=int, default=32)
    arguments.add_argument("--centres", type=int, default=200)
    arguments.add_argument("--tail", type=float, default=0.5)
    arguments.add_argument("--noise", type=float, default=0.56)
    arguments.add_argument("--group", type=int, default=40)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--skip", nargs="*", default=[], choices=("published", "groups", "graph"))
    options = arguments.parse_args()
    if "graph" not in options.skip:
        need("bench", "pymetis")
    generator, size = torch.Generator().manual_seed(0), options.batch_size
    z = clustered(options.rows, options.centres, options.tail, options.noise, generator)
    exact = Snapshot.build(z, factory="exact")  # no index is searched here

    def planned(scope: str) -> Tensor:
        sampler = Spectral(len(z), size, temperature=0.1, scope=scope, group=options.group)  # type: ignore[arg-type]
        sampler.update(exact)
        return torch.tensor(list(sampler))

    ways: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: torch.randperm(len(z), generator=generator)[: len(z) // size * size].view(-1, size),
        "bisection, principal components": lambda: bisected(z, size, generator),
        "balanced k-means, rounded cells": lambda: rounded(z, size, generator),
        "**global: balanced k-means, carrying**": lambda: planned("global"),
    }
    if "published" not in options.skip:
        name = f"published: groups of {options.group}, scikit-learn and SciPy"
        ways[name] = lambda: published(z, size, options.group, generator)
    if "groups" not in options.skip:
        ways[f"groups of {options.group}"] = lambda: planned("groups")
    graph_seconds = 0.0
    if "graph" not in options.skip:
        started = time.process_time()
        edges = symmetric(*Snapshot.build(z).index.graph(NEIGHBORS))
        graph_seconds = time.process_time() - started
        ways |= {
            "graph: embedding, bisection": lambda: bisected(spectral_map(edges, generator), size, generator),
            "graph: embedding, balanced k-means": lambda: cut(spectral_map(edges, generator), size, generator),
            "graph: METIS, made equal": lambda: metis(z, edges, size),
            "graph: global, then swaps": lambda: swapped(cut(z, size, generator), edges),
        }
        swapped(cut(z[:2000], size, generator), symmetric(*exact.index.search(z[:2000], NEIGHBORS)))  # compiles
    cut(z[: 20 * size], size, generator)
    print(f"N = {len(z)}, B = {size}, {options.centres} centres; {NEIGHBORS}-NN graph {graph_seconds:.2f} s\n")
    print("| way | mean batch loss, nats | seconds beside the graph | with it |\n|---|---|---|---|")
    for name, way in ways.items():
        seconds, losses = [], []
        for _ in range(1 if name.startswith("published") else options.runs):
            started = time.process_time()
            batches = way()
            seconds.append(time.process_time() - started)
            losses.append(loss(z, batches))
        taken = statistics.median(seconds)
        total = f"{taken + graph_seconds:.2f}" if name.startswith("graph") else ""
        print(f"| {name} | {statistics.median(losses):.3f} | {taken:.3f} | {total} |", flush=True)


if __name__ == "__main__":
    main()
