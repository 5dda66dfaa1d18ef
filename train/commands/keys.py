"""`negbank keys`."""

from __future__ import annotations

from argparse import Namespace
from typing import Any


def add(commands: Any) -> None:
    """Register the verb."""
    keys = commands.add_parser("keys", help="list every key with its default and meaning")
    keys.add_argument(
        "of", nargs="?", choices=("train", "ablate", "compare"), default="train", help="of which verb's files"
    )


def run(options: Namespace) -> int:
    """Print them."""
    from negbank.train.config import COMMANDS, describe

    root = {verb: root for root, verb in COMMANDS.items()}[options.of]
    for key, default, text in describe(root):
        print(f"{key} = {default}\n    {text}")
    return 0
