"""In-batch chains over both views: similarities, uniforms, chains and weights, in proposals a second.

    python benchmarks/chains.py [--runs 30]

Each of 2B anchors is offered all 2B views once (its own row's are skipped), half of the states are kept. Against the
same steps as a loop over proposals in plain torch, as published code runs them. Medians; random unit rows, D = 128.
One block of 20 MB is taken and given back first, as by any training step: until then glibc returns each matrix to the
system, and half of the time at B = 256 goes into page faults.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from negbank.counter import Counter
from negbank.samplers.metropolis import NO_STATE, Scan, log_uniforms, scan, scan_reference

TEMPERATURE = 0.07


def visit(z: torch.Tensor, run: Callable[..., Scan]) -> torch.Tensor:
    """Weights (2B, 2B) of one visit to all chains of a batch of unit embeddings z (2B, D)."""
    count = len(z)
    rows = torch.arange(count // 2).repeat(2)
    order = torch.randperm(count)
    proposals = torch.where(rows[order, None] == rows, NO_STATE, order[:, None]).T  # step by step, as the scan reads
    log_u = log_uniforms(count, count, counter=Counter.of(0), device=z.device)
    kernels, start = torch.zeros(count, dtype=torch.int64), torch.full((count,), NO_STATE)
    done = run((z @ (z / TEMPERATURE).T).T[None], proposals, kernels, log_u, start, burn_in=count // 2)
    counts = done.counts.float()
    return counts / counts.sum(1, keepdim=True)


def milliseconds(z: torch.Tensor, run: Callable[..., Scan], runs: int) -> float:
    """Median of `runs` visits."""
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        visit(z, run)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=30)
    options = arguments.parse_args()
    torch.zeros(5_000_000)
    print("| B | ms | million proposals/s | loop in torch, ms | ratio |\n|---|---|---|---|---|")
    for batch in (32, 64, 128, 256):
        z = torch.nn.functional.normalize(torch.randn(2 * batch, 128), dim=1)
        visit(z, scan)
        fast, loop = milliseconds(z, scan, options.runs), milliseconds(z, scan_reference, max(3, options.runs // 6))
        print(f"| {batch} | {fast:.2f} | {(2 * batch) ** 2 / fast / 1000:.0f} | {loop:.1f} | {loop / fast:.0f} |")


if __name__ == "__main__":
    main()
