"""`negbank schema`: the JSON schema of a configuration file, for editors."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add(commands: Any) -> None:
    """The parser of the verb."""
    parser = commands.add_parser("schema", help="the JSON schema of configuration files, for editors")
    parser.add_argument("of", nargs="?", default="train", choices=("train", "ablate", "compare"), help="whose files")


def run(options: argparse.Namespace) -> int:
    """Print it."""
    from negbank.train.config import root_model

    print(json.dumps(root_model(options.of).model_json_schema(), indent=1, ensure_ascii=False))
    return 0
