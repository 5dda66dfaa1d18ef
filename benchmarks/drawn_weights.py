"""What the weights of drawn batches cost: the exact form against the model of inclusion, side by side, as a ratio.

    OMP_NUM_THREADS=1 python benchmarks/drawn_weights.py [--rows 50000] [--dim 128] [--runs 20]

Clustered rows, a HeadTail proposal, groups of four. `step` is what `Importance` does with a batch that is encoded
already, scores included; the model asks for the density of every row of the batch at every other, the exact form for
that of the seeds alone. In turn, medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
from torch import Tensor

from negbank import Snapshot
from negbank.proposals import HeadTail
from negbank.samplers.batches import Drawn
from negbank.samplers.meeting import Meeting
from negbank.samplers.negatives import EncodedBatch, Importance

GROUP, TEMPERATURE = 4, 0.1


def step(sampler: Importance, rows: Tensor, embeddings: Tensor, meeting: Meeting | None) -> float:
    """CPU seconds of one call."""
    started = time.process_time()
    sampler(EncodedBatch.from_views(rows, embeddings, meeting=meeting), sampler.draw(rows, step=0))
    return time.process_time() - started


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--runs", type=int, default=20)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(500, options.dim, generator=generator)
    z = centres[torch.randint(500, (options.rows,), generator=generator)]
    z = torch.nn.functional.normalize(z + 0.8 * torch.randn(z.shape, generator=generator), dim=1)
    snapshot = Snapshot.build(z)
    bind = partial(HeadTail, k=64, temperature=TEMPERATURE)
    print("| B | uniform, ms | exact, ms | inclusion model, ms | model / exact |\n|---|---|---|---|---|")
    for size in (64, 256):
        batches = Drawn(options.rows, size, group=GROUP, proposal=bind)
        batches.update(snapshot)
        sampler = Importance(options.rows, temperature=TEMPERATURE, draws=0)
        seconds: dict[str, list[float]] = {"uniform": [], "exact": [], "model": []}
        twin = Drawn(options.rows, size, group=GROUP, proposal=bind, weights="model")
        twin.update(snapshot)
        for _, batch, other in zip(range(options.runs + 2), batches, twin):
            rows, others = torch.tensor(batch), torch.tensor(other)
            ways: dict[str, tuple[Tensor, Meeting | None]] = {
                "uniform": (others, None),
                "exact": (rows, batches.meeting(rows)),
                "model": (others, twin.meeting(others)),
            }
            for name, (ids, meeting) in ways.items():
                seconds[name].append(step(sampler, ids, z[ids.repeat(2)], meeting))
        uniform, exact, model = (1000 * statistics.median(each[2:]) for each in seconds.values())
        print(f"| {size} | {uniform:.2f} | {exact:.2f} | {model:.2f} | {model / exact:.1f} |", flush=True)


if __name__ == "__main__":
    main()
