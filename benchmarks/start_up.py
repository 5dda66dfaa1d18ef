"""How long a command takes to say what it knows without any work, against `import torch` alone.

    python benchmarks/start_up.py [--runs 9]

Every command in a process of its own, all in turn; medians of the runs after a first one that fills caches, and the
median of each run's ratio to its `import torch`. The last one is a configuration with a mistake.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WRONG = "data: {type: mnist5k}\nencoder: {type: convnet}\nbatches: {batch_size: 0}\nnegatives: {type: emc2, draw: 1}\n"
REFERENCE = "import torch"


def seconds(command: list[str], code: int) -> float:
    """Of one process, which has to end with an exit code."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - started
    if done.returncode != code:
        raise SystemExit(f"{command}: exit code {done.returncode}, expected {code}\n{done.stderr}")
    return taken


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
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for run in range(options.runs + 1):
            for name, (command, code) in commands.items():
                found = seconds(command, code)
                if run:
                    taken[name].append(found)
    print(f"| command | seconds | to `{REFERENCE}` |\n|---|---|---|")
    for name, found in taken.items():
        ratio = statistics.median(a / b for a, b in zip(found, taken[REFERENCE]))
        print(f"| {name} | {statistics.median(found):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
