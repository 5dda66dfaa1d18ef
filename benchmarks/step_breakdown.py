"""Where a training step's time goes: what the sampler adds to SimCLR's, and how long a step waits for its images.

    python benchmarks/step_breakdown.py configs/quickstart.yaml [--steps 300] [--runs 3] [key=value ...]
    python benchmarks/step_breakdown.py configs/quickstart.yaml --images FOLDER_OR_ZIP [negatives.type=in_batch ...]

Milliseconds a step, median of the runs; the ways take turns in one process. The first command sets the configuration
beside `negatives.type=in_batch`. "sampler" is index search, draws, densities and chains: all of `draw`, and what
`negatives` takes beyond SimCLR's own scores, weights and loss value. Shares are of the whole step.

With `--images` class folders of images take the place of the data (`data.rows` of them, 4000 where it is not said),
decoded at every read, and the encoder has one thread: `data.workers` 0 beside 2. "data" is what a step waits for.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from negbank.train.build import build, load_data
from negbank.train.config import load
from negbank.train.trainer import PHASES, Trainer

WARM_UP = 130
"""Steps before any is counted: the index is there, and chains have states."""
SETTLE = 10
"""Steps of a turn that are not counted: what was read ahead in the pause is used up."""
SIZE = 32
"""Side that images are scaled to."""


def advance(trainer: Trainer, steps: int) -> None:
    """So many steps, each with the refresh that it may have."""
    for _ in range(steps):
        trainer.step()
        trainer.refresh()


def turn(trainer: Trainer, steps: int) -> dict[str, float]:
    """Milliseconds a step of every phase, and encodings a step."""
    advance(trainer, SETTLE)
    trainer.seconds.clear()
    before = trainer.encodings
    advance(trainer, steps)
    found = {phase: 1000 * trainer.seconds[phase] / steps for phase in PHASES}
    return {**found, "step": sum(found.values()), "encodings": (trainer.encodings - before) / steps}


def trainers(path: Path, ways: dict[str, list[str]], overrides: list[str]) -> dict[str, Trainer]:
    """One for each way to override the configuration, over the same data, warmed up."""
    found, splits = {}, None
    for name, own in ways.items():
        config, _ = load(path, ["run.steps=1000000", "optim.warmup=0", *own, *overrides])
        splits = load_data(config) if splits is None else splits
        found[name] = trainer = build(config, splits=splits).trainer
        trainer.refresh()
        advance(trainer, WARM_UP)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--images", type=Path, help="class folders of images, as a folder or a .zip")
    parser.add_argument("--steps", type=int, default=300, help="of a run")
    parser.add_argument("--runs", type=int, default=3)
    options, overrides = parser.parse_known_args()
    ways = {"as configured": [], "in_batch": ["negatives.type=in_batch"]}
    if options.images is not None:
        torch.set_num_threads(1)
        folder = ["data.type=image_folder", f"data.root={options.images}", f"data.size={SIZE}", "data.memory_gb=1e-9"]
        ways = {f"{n} workers": [*folder, "data.rows=4000", f"data.workers={n}"] for n in (0, 2)}
    made = trainers(options.config, ways, overrides)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.runs):
        for name, trainer in made.items():
            turns[name].append(turn(trainer, options.steps))
    medians = {
        name: {key: statistics.median(each[key] for each in found) for key in found[0]} for name, found in turns.items()
    }
    print(f"| ms a step | {' | '.join(ways)} |\n|---|{'---|' * len(ways)}")
    for key in (*PHASES, "step", "encodings"):
        print(f"| {key} | {' | '.join(f'{medians[name][key]:.2f}' for name in ways)} |")
    mine, base = medians.values()
    if options.images is not None:
        shares = [statistics.median(each["data"] / each["step"] for each in found) for found in turns.values()]
        print(f"\nwaiting for data: {' and '.join(f'{100 * share:.1f} %' for share in shares)} of the step")
        print(f"a step with workers, to one without: {base['step'] / mine['step']:.2f}")
        return
    sampler = mine["draw"] + mine["negatives"] - base["negatives"]
    share, refresh = 100 * sampler / mine["step"], 100 * mine["refresh"] / mine["step"]
    print(f"\nsampler: {share:.1f} % of the step; refresh: {refresh:.1f} %")
    ratio = (mine["step"] / mine["encodings"]) / (base["step"] / base["encodings"])
    print(f"time an encoding, against in_batch: {ratio:.2f}")


if __name__ == "__main__":
    main()
