"""What a step of proposals costs beside the bare index search: densities, draws and chain.

    python benchmarks/proposal_step.py [--rows 100000] [--runs 20]

N unit rows of D = 128 in 1000 clusters, A = 256 anchors, k = 64, 16 proposals each, scored at random. `step` is the
proposal's call (search included), 16 draws, their log densities and the compiled chain. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from negbank import Snapshot
from negbank.proposals import Anchors, Cells, HeadTail, Nearest, Pooled, Proposal, Uniform
from samplers.metropolis import NO_STATE, scan

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


def median(call: Callable[[], object], runs: int) -> float:
    """Milliseconds of a call, after one that is not counted."""
    call()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--runs", type=int, default=20)
    options = arguments.parse_args()
    snapshot = Snapshot.build(clustered(options.rows))
    print(snapshot.index.report)
    rows = torch.randperm(options.rows, generator=torch.Generator().manual_seed(1))[:ANCHORS]
    anchors, scores = Anchors(rows, snapshot.vectors[rows]), 14 * torch.rand(ANCHORS, DRAWS)
    search = median(lambda: snapshot.index.search(anchors.queries, HEAD + 1), options.runs)
    print(f"| | ms | ratio |\n|---|---|---|\n| index search, k = {HEAD} | {search:.2f} | 1 |")
    proposals = (Uniform(snapshot), Nearest(snapshot, HEAD), HeadTail(snapshot, HEAD), Cells(snapshot))
    for proposal in proposals:
        took = median(lambda proposal=proposal: step(proposal, anchors, scores), options.runs)  # type: ignore[misc]
        print(f"| {type(proposal).__name__}: call, draws, densities, chain | {took:.2f} | {took / search:.2f} |")
    for each in (Nearest(snapshot, HEAD), HeadTail(snapshot, HEAD)):
        pool = Pooled(each)

        def shared(pool: Pooled = pool) -> None:
            distribution = pool(anchors)
            distribution.log_prob(distribution.sample(ANCHORS))

        took = median(shared, options.runs)
        name = f"Pooled {type(each).__name__}: call, {ANCHORS} draws, densities"
        print(f"| {name} | {took:.2f} | {took / search:.2f} |")


if __name__ == "__main__":
    main()
