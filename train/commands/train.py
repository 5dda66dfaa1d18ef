"""`negbank train`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """\
examples:
  negbank train configs/quickstart.yaml                          pre-train; results in runs/quickstart
  negbank train configs/quickstart.yaml negatives.type=in_batch run.dir=runs/simclr
  negbank train --resume runs/quickstart                         go on after an interruption
  negbank train --resume runs/quickstart run.steps=4000          make it longer
  negbank list                                                   every name and key, its default and its meaning
"""


def add(commands: Any) -> None:
    """Register the verb."""
    train = commands.add_parser(
        "train", help="pre-train an encoder", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="negbank train CONFIG [key=value ...] [--overwrite] | negbank train --resume RUN_DIR [run.steps=N]",
        description="Pre-train an encoder as a YAML file says. `key=value` changes a key of the file; `negbank list` "
        "shows them. The run writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/, summary.json and "
        "summary.png into run.dir. SIGTERM or Ctrl-C writes a checkpoint first.",
    )  # fmt: skip
    train.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="a YAML file, such as configs/quickstart.yaml"
    )
    train.add_argument("--resume", type=Path, metavar="RUN_DIR", help="go on with an interrupted run instead")
    train.add_argument("--overwrite", action="store_true", help="replace a run that run.dir holds already")
    train.set_defaults(overrides=[])


def run(options: argparse.Namespace) -> int:
    """Begin a run, or go on with one."""
    if options.resume is not None and (options.config is not None or options.overwrite):
        raise ValueError("--resume takes the run's own configuration; give no CONFIG and no --overwrite")
    if options.resume is None and options.config is None:
        raise ValueError("train needs a CONFIG, or --resume RUN_DIR; see negbank train --help")
    config = None
    if options.resume is None:  # a wrong configuration is said before anything heavy is imported
        from negbank.train.commands.configs import read

        config = read(options, "train")
    from negbank.train import report, run

    if config is None:
        folder, summary = options.resume, run.resume(options.resume, options.overrides)
    else:
        folder, summary = config.run.dir, run.start(config, overwrite=options.overwrite)
    print(report.table(summary))
    print(f"written to {folder}: summary.json, summary.png, metrics.jsonl, checkpoints/, tensorboard/")
    return 0
