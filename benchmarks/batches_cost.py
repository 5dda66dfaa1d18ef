"""What it costs to plan an epoch of batches from the bank, beside a step of a small encoder.

    OMP_NUM_THREADS=1 python benchmarks/batches_cost.py [--rows 49000] [--dim 256] [--batch 32] [--runs 3]

Rows are a mixture of rows / 8 Gaussians. Seconds of a snapshot as a run would build it (without an index where none is
asked for), of a plan of an epoch, and both in milliseconds a step; medians of the runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from negbank import Snapshot
from negbank.samplers.batches import Clusters, Communities, Knn, ProSampler, UniformBatches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 49_000), ("dim", 256), ("batch", 32), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    rows, size = options.rows, options.batch
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, rows // 8), options.dim, generator=generator)
    vectors = centres[torch.randint(len(centres), (rows,), generator=generator)]
    vectors += torch.randn(rows, options.dim, generator=generator)
    samplers = {
        "uniform": lambda: UniformBatches(rows, size),
        "communities": lambda: Communities(rows, size),
        "communities, metis": lambda: Communities(rows, size, partition="metis"),
        "clusters": lambda: Clusters(rows, size),
        "prosampler, K = 20": lambda: ProSampler(rows, size, candidates=None, neighbors=20),
        "knn, K = 100": lambda: Knn(rows, size),
    }
    print(f"{rows} rows, {options.dim} wide, B = {size}, {torch.get_num_threads()} threads\n")
    print(f"{'batches':22} {'snapshot, s':>12} {'plan, s':>9} {'ms a step':>10}")
    for name, make in samplers.items():
        found = [timed(make(), vectors) for _ in range(options.runs)]
        built, planned = (statistics.median(each) for each in zip(*found))
        print(f"{name:22} {built:12.2f} {planned:9.2f} {1000 * (built + planned) * size / rows:10.2f}")


def timed(sampler: UniformBatches, vectors: torch.Tensor) -> tuple[float, float]:
    """Seconds of the snapshot and of the first batch, with which the epoch is planned."""
    started = time.perf_counter()
    snapshot = Snapshot.build(vectors, factory="exact")
    built = time.perf_counter() - started
    sampler.update(snapshot)
    started = time.perf_counter()
    next(iter(sampler))
    return built, time.perf_counter() - started


if __name__ == "__main__":
    main()
