"""`negbank refilter`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from negbank import files
from negbank.train.mining.arguments import RULES, TEXTS, add_outputs, add_rules, check_export, given, write


def add(commands: Any) -> None:
    """Register the verb."""
    refilter = commands.add_parser(
        "refilter", help="other thresholds on a mining result, without a new search",
        description="Choose again among the candidates that a mining result kept. What is not given stays as it was.",
    )  # fmt: skip
    refilter.add_argument("result", type=Path, metavar="RESULT")
    add_rules(refilter, RULES)
    add_outputs(refilter)


def run(options: Namespace) -> int:
    """Save what other rules give."""
    from negbank import MiningResult

    check_export(options)
    result = MiningResult.load(options.result).refilter(**given(options, RULES))
    result.save(options.out)
    texts, lookup = options.result / TEXTS, None
    if TEXTS in files.told(options.result)["sha256"]:
        lookup = tuple(json.loads(texts.read_text()))
    elif texts.exists():
        raise files.DamagedError(
            f"{texts}: the manifest does not know it, as after a kill; mine again to write it anew"
        )
    write(result, lookup, options)
    return 0
