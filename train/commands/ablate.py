"""`negbank ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  negbank ablate configs/ablate_npy.yaml source.path=mine.npy    embeddings in a file, with simulated drift
  negbank ablate configs/ablate_npy.yaml source.path=mine.npy 'temperatures=[0.07, 0.2]' 'queries=[bank, fresh]'
  negbank ablate configs/ablate_npy.yaml 'proposals=[{type: uniform}, {type: nearest, k: 32}]' out=ablation/k32
  negbank ablate configs/ablate_snapshots.yaml source.bank=OLDER source.truth=NEWER
                                                                 the drift of a run, between two of its snapshots
  negbank train configs/quickstart.yaml ablation.every=500 run.dir=runs/ablated
                                                                 inside a run, into run.dir/ablation
  negbank list ablate                                            every key, its default and its meaning
"""


def add(commands: Any) -> None:
    """Register the verb."""
    ablate = commands.add_parser(
        "ablate", help="compare proposals: bias, mixing and cost", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="negbank ablate CONFIG [key=value ...] [--overwrite]",
        description="Measure proposals over a stale bank, exactly, for every temperature, level of staleness and\n"
        "number of draws that a YAML file asks for: total variation, bias and variance of the gradient's\n"
        "direction, effective draws, sup π/q, acceptance, encodings and milliseconds. `key=value` changes a key of\n"
        "the file. Writes report.html, ablation.csv, ablation.jsonl, tv.png and bias.png into the folder `out`. The\n"
        "same command goes on after an interruption; a folder with results of another configuration is refused.",
    )  # fmt: skip
    ablate.add_argument("config", type=Path, metavar="CONFIG", help="a YAML file, such as configs/ablate_npy.yaml")
    ablate.add_argument("--overwrite", action="store_true", help="replace the results that `out` holds already")
    stopped = "stopped; the same command goes on from the last finished measurement"
    ablate.set_defaults(overrides=[], stopped=stopped)


def run(options: argparse.Namespace) -> int:
    """Measure what is left, and print the answer."""
    from negbank.train.commands.configs import read

    config = read(options, "ablate")
    from negbank.train.studies.ablation.run import run

    print(run(**dict(config), overwrite=options.overwrite))
    print(f"written to {config.out}: report.html, ablation.csv, ablation.jsonl, tv.png, bias.png")
    return 0
