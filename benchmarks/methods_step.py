"""What a step of every method of a comparison costs beyond the encodings it asks for, against the reference's step.

    python benchmarks/methods_step.py configs/compare_cifar10.yaml [--steps 60] [--runs 5] [base.data.root=...]

With T the milliseconds and e the encodings of a step, and c the reference's images, forward and backward an encoding,

    ratio = T / (T_ref + c (e − e_ref))

Methods take turns in one process, some steps each, once all of them have a snapshot; medians of the turns. Refreshes
of the index are counted apart: milliseconds of one, over the steps between two.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from pathlib import Path

from negbank.train.build import Assembly, build, load_data
from negbank.train.config import load
from negbank.train.studies.compare.methods import method_configs
from negbank.train.trainer import PHASES

ENCODING = ("data", "forward", "backward")


def turn(assembly: Assembly, steps: int) -> dict[str, float]:
    """Milliseconds a step of every phase, and encodings a step, without refreshes."""
    trainer = assembly.trainer
    trainer.seconds.clear()
    before = trainer.encodings
    for _ in range(steps):
        trainer.step()
    found = {phase: 1000 * trainer.seconds[phase] / steps for phase in PHASES if phase != "refresh"}
    return {**found, "step": sum(found.values()), "encodings": (trainer.encodings - before) / steps}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("config", type=Path)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--runs", type=int, default=5)
    options, overrides = arguments.parse_known_args()
    comparison, _ = load(options.config, [*overrides, "base.run.steps=1000000"], root="compare")
    configs = method_configs(comparison.base, comparison.methods)
    splits = load_data(next(iter(configs.values())))
    methods, refreshes = {}, {}
    for name, config in configs.items():
        methods[name] = assembly = build(config, splits=splits)
        for _ in range(len(assembly.trainer.batches)):  # until the bank holds every row, and every chain has a state
            assembly.trainer.step()
        assembly.trainer.descent.step_number += config.refresh.every  # a refresh is due
        assembly.trainer.refresh()
        refreshes[name] = 1000 * assembly.trainer.seconds["refresh"] / config.refresh.every
    gc.disable()
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for run in range(options.runs + 1):
        for name, assembly in methods.items():
            found = turn(assembly, options.steps)
            if run:
                turns[name].append(found)
    medians = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]} for name, found in turns.items()
    }
    base = medians[comparison.reference or next(iter(medians))]
    cost = sum(base[phase] for phase in ENCODING) / base["encodings"]
    print("| method | ms a step | encodings | draw | negatives | refresh | ratio |\n|---|---|---|---|---|---|---|")
    for name, found in medians.items():
        ratio = found["step"] / (base["step"] + cost * (found["encodings"] - base["encodings"]))
        cells = [f"{found[key]:.2f}" for key in ("step", "encodings", "draw", "negatives")]
        print(f"| {name} | {' | '.join(cells)} | {refreshes[name]:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
