"""What a step of proposals costs beside the bare index search: densities, draws and chain.

    python benchmarks/proposal_step.py [--rows 100000 | --vectors FILE.npy] [--runs 60]

N unit rows of D = 128 in 1000 clusters, or yours; A = 256 anchors, k = 64, 16 proposals each, scored at random. A step
is the proposal's call (search included), 16 draws, their log densities and the compiled chain. Every run has anchors
of its own, as in training, where none finds its rows in the cache. Medians; all take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from negbank import Snapshot
from negbank.proposals import Anchors, Cells, HeadTail, Nearest, Pooled, Proposal, Uniform
from negbank.samplers.metropolis import NO_STATE, scan

DIM, ANCHORS, HEAD, DRAWS = 128, 256, 64, 16


def clustered(rows: int) -> torch.Tensor:
    """Rows (N, 128) around 1000 Gaussian centres."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, DIM, generator=generator)
    return centres[torch.randint(1000, (rows,), generator=generator)] + 0.7 * torch.randn(
        rows, DIM, generator=generator
    )


def step(proposal: Proposal, anchors: Anchors, scores: torch.Tensor) -> None:
    """One visit of all chains, from nothing."""
    distribution = proposal(anchors)
    log_weights = scores - distribution.log_prob(distribution.sample(DRAWS)).float()
    columns, start = torch.arange(DRAWS).expand(ANCHORS, -1), torch.full((ANCHORS,), NO_STATE)
    log_u = torch.rand(DRAWS, ANCHORS).log_().T
    scan(log_weights[None], columns, torch.zeros(DRAWS, dtype=torch.int64), log_u, start, burn_in=DRAWS // 2)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--vectors", type=Path)
    arguments.add_argument("--runs", type=int, default=60)
    options = arguments.parse_args()
    vectors = clustered(options.rows) if options.vectors is None else torch.from_numpy(np.load(options.vectors)).float()
    snapshot = Snapshot.build(vectors)
    print(snapshot.index.report)
    scores, generator = 14 * torch.rand(ANCHORS, DRAWS), torch.Generator().manual_seed(1)
    calls: dict[str, Callable[[Anchors], object]] = {
        f"index search, k = {HEAD}": lambda anchors: snapshot.index.search(anchors.queries, HEAD + 1)
    }
    for proposal in (Uniform(snapshot), Nearest(snapshot, HEAD), HeadTail(snapshot, HEAD), Cells(snapshot)):
        name = f"{type(proposal).__name__}: call, draws, densities, chain"
        calls[name] = lambda anchors, proposal=proposal: step(proposal, anchors, scores)  # type: ignore[misc]
    for each in (Nearest(snapshot, HEAD), HeadTail(snapshot, HEAD)):

        def shared(anchors: Anchors, pool: Pooled = Pooled(each)) -> None:  # noqa: B008
            distribution = pool(anchors)
            distribution.log_prob(distribution.sample(ANCHORS))

        calls[f"Pooled {type(each).__name__}: call, {ANCHORS} draws, densities"] = shared
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.runs):
        for name, call in calls.items():
            rows = torch.randperm(len(vectors), generator=generator)[:ANCHORS]
            anchors = Anchors(rows, snapshot.vectors[rows])
            started = time.perf_counter()
            call(anchors)
            taken[name].append(1000 * (time.perf_counter() - started))
    medians = {name: statistics.median(runs) for name, runs in taken.items()}
    search = next(iter(medians.values()))
    print("| | ms | ratio |\n|---|---|---|")
    for name, took in medians.items():
        print(f"| {name} | {took:.2f} | {took / search:.2f} |")


if __name__ == "__main__":
    main()
