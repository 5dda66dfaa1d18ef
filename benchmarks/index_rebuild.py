"""Rebuilding an IVF after the embeddings drifted: from stale centroids against from nothing.

    python benchmarks/index_rebuild.py [--rows 100000] [--dim 128] [--runs 3]

Clustered unit rows, moved to mean cosine 0.9 of where they were. Seconds to train and fill, recall@64 at the old
nprobe, and list imbalance; medians of the runs, and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from negbank import ExactIndex, FaissIndex
from negbank.index.factory import choose_factory


def rows(count: int, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Unit rows around count/200 centres."""
    centres = torch.randn(count // 200, dim, generator=generator)
    own = torch.randint(len(centres), (count,), generator=generator)
    return torch.nn.functional.normalize(centres[own] + 0.8 * torch.randn(count, dim, generator=generator), dim=1)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=100_000)
    arguments.add_argument("--dim", type=int, default=128)
    arguments.add_argument("--runs", type=int, default=3)
    options = arguments.parse_args()
    generator = torch.Generator().manual_seed(0)
    before = rows(options.rows, options.dim, generator)
    noise = torch.randn(before.shape, generator=generator) * (0.484 / options.dim**0.5)  # 1/√(1 + 0.484²) = 0.9
    now = torch.nn.functional.normalize(before + noise, dim=1)
    factory = choose_factory(options.rows, options.dim, before.device)
    old = FaissIndex(before, factory=factory)
    queries = torch.randperm(options.rows, generator=generator)[:1000]
    truth = ExactIndex(now).search(now[queries], 64).ids
    found: dict[str, list[tuple[float, float, float]]] = {"cold": [], "warm": []}
    for _ in range(options.runs):
        for name, cells in (("cold", None), ("warm", old.cells)):
            index = object.__new__(FaissIndex)
            index._place(now, None)
            started = time.perf_counter()
            imbalance = index._build(factory, cells, 0)
            seconds = time.perf_counter() - started
            index._index.nprobe = old.report.nprobe or 1
            ids = index._nearest(now[queries], 64)
            recall = float((ids[:, :, None] == truth[:, None, :]).any(1).double().mean())
            found[name].append((seconds, recall, imbalance or 0.0))
    print(f"{factory} over {options.rows} × {options.dim}, nprobe {old.report.nprobe}\n")
    print("| start | seconds | recall@64 | imbalance |\n|---|---|---|---|")
    medians = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in found.items()}
    for name, (seconds, recall, imbalance) in medians.items():
        print(f"| {name} | {seconds:.2f} | {recall:.3f} | {imbalance:.2f} |")
    print(f"\nwarm takes {medians['warm'][0] / medians['cold'][0]:.2f} of the time")


if __name__ == "__main__":
    main()
