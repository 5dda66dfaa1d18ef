"""`negbank compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  negbank compare configs/compare_mnist5k.yaml                   minutes, on images that need no download
  negbank compare configs/compare_cifar10.yaml 'seeds=[0, 1]' 'lr=[0.001]' base.run.steps=500
  negbank compare configs/compare_cifar10.yaml jobs=2            two runs at once; timings are then not comparable
  negbank list compare                                           every key, its default and its meaning
"""


def add(commands: Any) -> None:
    """Register the verb."""
    compare = commands.add_parser(
        "compare", help="compare methods over seeds, at equal steps and equal encodings", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter, usage="negbank compare CONFIG [key=value ...]",
        description="Train every method of a YAML file with every seed, at equal optimiser steps and at equal encoder\n"
        "forward passes, with a learning rate chosen alike for all. `key=value` changes a key of the file. Every run\n"
        "has its folder in `out`, OUT/METHOD/BUDGET/lrLR/seedSEED/; from these come report.html, results.csv,\n"
        "summary.csv and accuracy.png. The same command goes on after an interruption, and repeats no finished run.",
    )  # fmt: skip
    compare.add_argument(
        "config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/compare_mnist5k.yaml"
    )
    compare.set_defaults(overrides=[], stopped="stopped; the same command goes on from the runs' checkpoints")


def run(options: argparse.Namespace) -> int:
    """Run what is left, and print the table."""
    from negbank.train.commands.configs import read

    config = read(options, "compare")
    from negbank.train.studies.compare.run import run

    print(run(**dict(config)))
    print(f"written to {config.out}: report.html, results.csv, summary.csv, accuracy.png, and a folder a run")
    return 0
