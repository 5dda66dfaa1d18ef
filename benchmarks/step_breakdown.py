"""Where a training step's time goes, and what the sampler adds to SimCLR's.

    python benchmarks/step_breakdown.py configs/quickstart.yaml [--steps 300] [--runs 3]

Runs the configuration as it is and with `negatives.type=in_batch`, in turn, in one process; milliseconds a step,
median of the runs. "sampler" is index search, draws, densities and chains: all of `draw`, and what `negatives` takes
beyond SimCLR's own scores, weights and loss value. Shares are of the whole step.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from negbank.train.build import build
from negbank.train.config import load
from negbank.train.trainer import PHASES

WARM_UP = 130


def measure(path: Path, steps: int, overrides: list[str]) -> dict[str, float]:
    """Milliseconds a step of every phase, and encodings a step."""
    config, _ = load(path, [f"run.steps={WARM_UP + steps}", "optim.warmup=0", *overrides])
    trainer = build(config).trainer
    trainer.refresh()
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            trainer.seconds.clear()
            encodings = trainer.encodings
        trainer.step()
        trainer.refresh()
    found = {phase: 1000 * trainer.seconds[phase] / steps for phase in PHASES}
    return {**found, "step": sum(found.values()), "encodings": (trainer.encodings - encodings) / steps}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("config", type=Path)
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--runs", type=int, default=3)
    options = arguments.parse_args()
    methods = {"as configured": [], "in_batch": ["negatives.type=in_batch"]}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for _ in range(options.runs):
        for name, overrides in methods.items():
            rows[name].append(measure(options.config, options.steps, overrides))
    medians = {
        name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in rows.items()
    }
    print(f"| ms a step | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for key in (*PHASES, "step", "encodings"):
        print(f"| {key} | {' | '.join(f'{medians[name][key]:.2f}' for name in methods)} |")
    mine, base = medians["as configured"], medians["in_batch"]
    sampler = mine["draw"] + mine["negatives"] - base["negatives"]
    share, refresh = 100 * sampler / mine["step"], 100 * mine["refresh"] / mine["step"]
    print(f"\nsampler: {share:.1f} % of the step; refresh: {refresh:.1f} %")
    ratio = (mine["step"] / mine["encodings"]) / (base["step"] / base["encodings"])
    print(f"time an encoding, against in_batch: {ratio:.2f}")


if __name__ == "__main__":
    main()
