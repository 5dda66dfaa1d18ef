"""`negbank index build` and `negbank index info`."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from negbank import files


def add(commands: Any) -> None:
    """Register the verb."""
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


def run(options: Namespace) -> int:
    """Build or describe."""
    return _build(options) if options.action == "build" else _info(options.folder)


def _build(options: Namespace) -> int:
    from negbank import Snapshot
    from negbank.mining.inputs import Rows

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


def _info(folder: Path) -> int:
    from negbank import MiningResult, Snapshot

    if not (folder / files.MANIFEST).is_file():
        raise FileNotFoundError(f"{folder}: no {files.MANIFEST}; expected a saved snapshot or mining result")
    manifest = files.told(folder)
    if "rules" in manifest or "run" in manifest:
        print(MiningResult.load(folder).summary())
        return 0
    snapshot = Snapshot.load(folder)
    print(snapshot.index.report)
    written = len(snapshot) if snapshot.rows is None else len(snapshot.rows)
    print(f"format {manifest['format']}, shape {manifest['shape']}, {manifest['dtype']}, {written} rows indexed")
    print(f"step {snapshot.step}, version {snapshot.version}, model {snapshot.fingerprint or 'unknown'}")
    print(f"{len(manifest['sha256'])} files, checksums hold")
    return 0
