"""What a batch larger than memory costs: peak memory and time of a step in pieces, against small and whole batches.

    OMP_NUM_THREADS=1 python benchmarks/micro_batch.py configs/quickstart.yaml [--runs 5] [--steps 5] [key=value ...]

Batches of 128 rows, of 1024 rows, and of 1024 rows with `run.micro_batch` 128, half the inputs of the first: the inputs
of all pieces wait for their second pass. Group norm, and none in the projector, since pieces have no statistics of the
batch. Each in a process of its own, in turn, medians.

tensors     the most bytes that PyTorch's allocator has handed out at once in a step, beyond those it had before
encoder     the same of its passes alone: views, forward and backward; the rest is scores of pairs, of 2B anchors or of
            a piece's, and what the negatives make of them
resident    the most memory that the process held in a step, beyond what it held before: libraries' workspace, too

Before means with data, bank, index, encoder and the optimiser's moments in memory, after a step of 8 rows and one of
the batch itself: what stays from step to step is so left out, as is what is loaded or compiled once.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from negbank.counter import Counter
from negbank.train.build import build, load_data
from negbank.train.config import load
from negbank.train.passes import Passes
from negbank.train.trainer import Trainer

ROWS, MANY, PIECE = 128, 1024, 128
WAYS = {
    f"B = {ROWS}": [f"batches.batch_size={ROWS}"],
    f"B = {MANY}": [f"batches.batch_size={MANY}"],
    f"B = {MANY}, in pieces": [f"batches.batch_size={MANY}", f"run.micro_batch={PIECE}"],
}
NORMS = ["encoder.norm=group", "encoder.projector.norm=none", "run.steps=1000000", "optim.warmup=0"]


def resident(name: str) -> int:
    """Bytes of the process now (VmRSS), or at most since the mark was cleared (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def measure(path: Path, steps: int, overrides: list[str]) -> dict[str, float]:
    """Of this process: MiB as above, and milliseconds of a step by the clock and of CPU."""
    config, _ = load(path, [*NORMS, *overrides])
    small, _ = load(path, [*NORMS, *overrides, "batches.batch_size=8"])
    splits = load_data(config)
    for each in (small, config):
        trainer = build(each, splits=splits).trainer
        trainer.refresh()
        trainer.step()
    taken, busy = [], []
    for _ in range(steps):
        started, used = time.perf_counter(), time.process_time()
        trainer.step()
        taken.append(time.perf_counter() - started)
        busy.append(time.process_time() - used)
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    trainer.step()
    held = resident("VmHWM") - before
    found = {
        "tensors": allocated(trainer.step),
        "encoder": allocated(lambda: encode(trainer, config.batches.batch_size)),
    }
    milliseconds = {name: 1000 * statistics.median(times) for name, times in (("ms", taken), ("CPU ms", busy))}
    return {**{name: most / 2**20 for name, most in found.items()}, "resident": held / 2**20, **milliseconds}


def allocated(work: Callable[[], object]) -> int:
    """The most bytes of tensors that some work has at once, beyond those there were before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def encode(trainer: Trainer, rows: int) -> None:
    """Two views of so many rows through the encoder and back, in the pieces of the trainer."""
    (tower,), piece = trainer.towers, trainer.micro_batch
    passes = Passes(Counter.of(0), autocast=trainer.autocast, device=trainer.device, cached=piece is not None)
    both, seeds, size = torch.arange(rows).repeat(2), Counter.of(0).seeds(2 * rows), piece or 2 * rows
    inputs = [tower.data.read(*part) for part in zip(both.split(size), seeds.split(size))]
    passes.backward(passes(tower.encoder, inputs, name="alone").sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="that are timed in a run")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.one is not None:
        print(json.dumps(measure(options.config, options.steps, [*WAYS[options.one], *overrides])))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(options.runs):
        for name, found in runs.items():
            command = [sys.executable, __file__, str(options.config), "--steps", str(options.steps), "--one", name]
            told = subprocess.run([*command, *overrides], check=True, capture_output=True, text=True).stdout
            found.append(json.loads(told.splitlines()[-1]))
    medians = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]} for name, found in runs.items()
    }
    small, whole, pieces = medians.values()
    print("| | tensors, MiB | encoder | resident | ms a step | CPU ms |\n|---|---|---|---|---|---|")
    for name, found in medians.items():
        print(f"| {name} | {' | '.join(f'{value:.0f}' for value in found.values())} |")
    for against, base in ((f"B = {ROWS}", small), (f"B = {MANY} whole", whole)):
        told = ", ".join(f"{key} {pieces[key] / base[key]:.2f}" for key in pieces)
        print(f"\nin pieces, to {against}: {told}")


if __name__ == "__main__":
    main()
