"""Mining a corpus that is larger than what the process may hold: 5 million × 128 in float16, 1000 queries, top 50.

    python benchmarks/mining_memory.py [--rows 5000000] [--budget 2GB] [--shards 10] [--folder FOLDER]

Shards are written once. Mining runs in a process of its own: seconds, the peak of its resident memory,
and, on a sample of queries, whether the negatives are those of a brute-force search.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DIM, TOP = 128, 50


def write(folder: Path, rows: int, shards: int) -> None:
    """Clustered rows, shard by shard, and queries near some of them."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((1000, DIM), dtype=np.float32)
    size = -(-rows // shards)
    for number in range(shards):
        path = folder / f"shard-{number:03d}.npy"
        if not path.exists():
            own = np.random.default_rng(number + 1)
            count = min(size, rows - number * size)
            part = centres[own.integers(1000, size=count)] + 1.5 * own.standard_normal((count, DIM), dtype=np.float32)
            np.save(path, part.astype(np.float16))
    (folder / "queries").mkdir(exist_ok=True)
    queries = centres[generator.integers(1000, size=1000)] + generator.standard_normal((1000, DIM), dtype=np.float32)
    np.save(folder / "queries" / "queries.npy", queries)


def mine(folder: Path, budget: str) -> None:
    """Mine; prints seconds, the process's peak, and what it held before."""
    import negbank
    from negbank.mining.budget import resident_bytes

    Path("/proc/self/clear_refs").write_text("5")
    before, started = resident_bytes(), time.perf_counter()
    shards = sorted(folder.glob("shard-*.npy"))
    negbank.mine_hard_negatives(
        folder / "queries", shards, [[]] * 1000, num_negatives=TOP, memory_budget=budget, out=folder / "mined"
    )
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
    print(json.dumps([seconds, peak, before]))


def brute_force(folder: Path, sample: np.ndarray) -> list[set[int]]:
    """The top rows of some queries, in double precision."""
    queries = np.load(folder / "queries" / "queries.npy")[sample].astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    best: list[list[tuple[float, int]]] = [[] for _ in sample]
    start = 0
    for path in sorted(folder.glob("shard-*.npy")):
        shard = np.load(path, mmap_mode="r")
        for at in range(0, len(shard), 100_000):
            rows = shard[at : at + 100_000].astype(np.float64)
            scores = queries @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
            for i, row in enumerate(scores):
                top = np.argpartition(-row, min(TOP, len(row) - 1))[:TOP]
                best[i] = sorted([*best[i], *((row[j], start + at + j) for j in top)], reverse=True)[:TOP]
        start += len(shard)
    return [{j for _, j in found} for found in best]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--budget", default="2GB")
    parser.add_argument("--folder", type=Path, help="kept; a temporary one by default")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mine(options.folder, options.budget)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, options.rows, options.shards)
        command = [sys.executable, __file__, "--child", "--folder", str(folder), "--budget", options.budget]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        seconds, peak, before = json.loads(told)
        print(f"{options.rows} × {DIM} float16, 1000 queries, top {TOP}, memory_budget={options.budget}")
        print(f"{seconds:.1f} s, peak {peak / 2**20:.0f} MiB, of which {before / 2**20:.0f} MiB before the call")
        import negbank

        result = negbank.MiningResult.load(folder / "mined")
        sample = np.random.default_rng(1).permutation(1000)[:10]
        agree = [set(result[int(i)][0].tolist()) == truth for i, truth in zip(sample, brute_force(folder, sample))]
        print(f"equal to brute force: {sum(agree)} of {len(agree)} sampled queries")


if __name__ == "__main__":
    main()
