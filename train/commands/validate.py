"""`negbank validate`."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Register the verb."""
    validate = commands.add_parser(
        "validate", help="check configuration files and report all problems",
        usage="negbank validate CONFIG [CONFIG ...] [key=value ...]",
        description="Check files, each with the overrides, without running them.",
    )  # fmt: skip
    validate.add_argument("words", nargs="+", metavar="CONFIG", help="YAML files of any verb")
    validate.set_defaults(overrides=[])


def run(options: Namespace) -> int:
    """Say of every file that it is well, or all that is wrong with it."""
    from negbank.train.config import ConfigError, load, root_of

    overrides = [word for word in options.words if "=" in word and not Path(word).exists()]
    paths, failed = [word for word in options.words if word not in overrides], 0
    if not paths:
        raise ValueError("validate needs a CONFIG; see negbank validate --help")
    for path in paths:
        try:
            load(path, [*overrides, *options.overrides], root=root_of(path), inputs=True)
            print(f"{path}: ok")
        except ConfigError as error:
            print(error, file=sys.stderr)
            failed += 1
    return 2 if failed else 0
