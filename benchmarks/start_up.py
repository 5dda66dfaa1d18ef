"""How long a command takes to say what it knows without any work, against `import torch` alone.

    python benchmarks/start_up.py [--runs 9]

Every command in a process of its own, all in turn; medians of the runs after a first one that fills caches, and the
medians of each run's ratios to its `import torch`, by the clock and in CPU seconds, which a busy machine changes less.
The last one is a configuration with two mistakes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WRONG = "data: {type: mnist5k}\nencoder: {type: convnet}\nbatches: {batch_size: 0}\nnegatives: {type: emc2, draw: 1}\n"
REFERENCE = "import torch"


def seconds(command: list[str], code: int) -> tuple[float, float]:
    """By the clock and of CPU, of one process, which has to end with an exit code."""
    started, used = time.perf_counter(), children()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - started, children() - used
    if done.returncode != code:
        raise SystemExit(f"{command}: exit code {done.returncode}, expected {code}\n{done.stderr}")
    return taken


def children() -> float:
    """CPU seconds of all processes that have ended."""
    used = os.times()
    return used.children_user + used.children_system


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=9)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wrong = Path(scratch) / "wrong.yaml"
        wrong.write_text(WRONG)
        negbank = [sys.executable, "-m", "negbank"]
        commands = {
            REFERENCE: ([sys.executable, "-c", REFERENCE], 0),
            "negbank --version": ([*negbank, "--version"], 0),
            "negbank --help": ([*negbank, "--help"], 0),
            "negbank list": ([*negbank, "list"], 0),
            "negbank train WRONG.yaml": ([*negbank, "train", str(wrong)], 2),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for run in range(options.runs + 1):
            for name, (command, code) in commands.items():
                found = seconds(command, code)
                if run:
                    taken[name].append(found)
    print("| command | seconds | ratio | CPU seconds | ratio |\n|---|---|---|---|---|")
    for name, found in taken.items():
        cells = []
        for column, reference in zip(zip(*found), zip(*taken[REFERENCE])):
            cells += [statistics.median(column), statistics.median(a / b for a, b in zip(column, reference))]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in cells)} |")


if __name__ == "__main__":
    main()
