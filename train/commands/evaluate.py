"""`negbank eval`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Register the verb."""
    evaluate = commands.add_parser("eval", help="measure the newest checkpoint of a run")
    evaluate.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    evaluate.add_argument("--best", action="store_true", help="measure the best checkpoint (run.keep_best) instead")


def run(options: Namespace) -> int:
    """Print the table of measures."""
    from negbank.train import report, run

    print(report.table(run.evaluate(options.run_dir, best=options.best)))
    return 0
