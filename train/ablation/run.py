"""An ablation as a configuration says: its proposals by name, into a folder, resumable."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from negbank.train.ablation import report, sources
from negbank.train.ablation.answer import Answer, answer
from negbank.train.ablation.average import summarise, write_csv
from negbank.train.ablation.cells import Bind, choose, keys_of, measured
from negbank.train.ablation.figures import draw_bias, draw_tv
from negbank.train.ablation.measure import TIMED, Cell, Key, block
from negbank.train.ablation.sources import Source
from negbank.train.ablation.store import Store
from negbank.train.build import PROPOSALS
from negbank.train.config import ConfigError, to_dict
from negbank.train.options import Ablation
from torch import Tensor
from tqdm import tqdm

from negbank import Snapshot
from negbank.proposals import Proposal
from negbank.proposals import measure as probe

PROBE_ROWS, PROBE_DRAWS = 64, 512
"""Rows that a proposal which adapts is fitted on: as many as in a run at its default refresh.probe_rows."""


def named(proposals: Sequence[Any], seed: int) -> tuple[list[str], Bind]:
    """The names that option dataclasses get in the results, and what binds the proposals of those names."""
    by_name = {label(each): each for each in proposals}

    def bind(key: Key, bank: Snapshot, truth: Tensor) -> Proposal:
        options = by_name[key.proposal]
        arguments = {k: v for k, v in vars(options).items() if k != "type"}
        if arguments.get("temperature", 1.0) is None:
            arguments["temperature"] = key.temperature
        if arguments.get("adapt"):  # as in a run, from the fresh embeddings of a few rows
            rows = choose(bank, PROBE_ROWS, seed + 1)
            arguments["probe"] = probe(
                bank, rows, truth.__getitem__, temperature=key.temperature, draws=PROBE_DRAWS,
                fresh_queries=key.query == "fresh", generator=torch.Generator().manual_seed(seed),
            )  # fmt: skip
        return PROPOSALS[options.type](bank, **arguments)

    return list(by_name), bind


def label(options: Any) -> str:
    """What a proposal is called in the results, such as HeadTail k=64, floor 0.1: k, floor, and what is not default."""
    default = vars(type(options)())
    given = [(k, v) for k, v in vars(options).items() if k in ("k", "floor") or (k != "type" and v != default[k])]
    words = [k if v is True else f"k={v}" if k == "k" else f"{k} {v}" for k, v in given]
    return " ".join([PROPOSALS[options.type].__name__, ", ".join(words)]).strip()


def from_config(config: Ablation, *, overwrite: bool = False) -> Answer:
    """Run an ablation into the folder `config.out`, or go on with it; the answer that its report opens with.

    Raises:
        ConfigError: for inputs that do not fit, before any work.
        AblationError: when the folder holds the results of another ablation.
        DamagedSnapshotError: for a snapshot that is damaged.
    """
    source = _open(config)
    settings = {k: v for k, v in to_dict(config).items() if k != "out"}
    store = Store(Path(config.out), {**settings, "inputs": dict(source.inputs)}, overwrite=overwrite)
    names, bind = named(config.proposals, config.seed)
    keys = {level: keys_of(level, config.temperatures, config.queries, names) for level in source.levels}
    total = sum(len(each) for each in keys.values())
    pace = 0.2 if sys.stderr.isatty() else 10
    with tqdm(total=total, initial=len(store.cells), unit="cell", dynamic_ncols=True, mininterval=pace) as bar:
        for level, build in source.levels.items():
            left = [key for key in keys[level] if key not in store.cells]
            if not left:
                continue
            bank = build()
            rows = choose(bank, config.anchors, config.seed)
            bar.set_description(level)
            for cell in measured(
                bank, source.truth, rows, bind, left, budgets=sorted(config.budgets), seed=config.seed
            ):
                store.add(cell)
                bar.update()
    cells = [store.cells[key] for each in keys.values() for key in each]
    return write(store.folder, cells, what=source.what, settings=settings, rows=len(source.truth))


def _open(config: Ablation) -> Source:
    options = {k: v for k, v in vars(config.source).items() if k != "type"}
    try:
        if config.source.type == "npy":
            source = sources.npy(**options, seed=config.seed)
        else:
            source = sources.snapshots(**options)
    except ValueError as error:
        if type(error) is not ValueError:  # a damaged snapshot
            raise
        raise ConfigError("source", [str(error)]) from None
    problems = [
        f"proposals[{i}].k={each.k}: there are only {len(source.truth) - 1} other rows; lower k"
        for i, each in enumerate(config.proposals)
        if getattr(each, "k", 1) >= len(source.truth)
    ]
    if problems:
        raise ConfigError("proposals", problems)
    return source


def write(folder: Path, cells: Sequence[Cell], *, what: str, settings: Mapping[str, Any], rows: int) -> Answer:
    """ablation.csv, the figures and the report of all cells over N = rows; the answer that the report opens with."""
    averages = summarise(cells)
    write_csv(averages, folder / "ablation.csv")
    draw_tv(averages, folder / "tv.png")
    draw_bias(averages, folder / "bias.png")
    found = answer(cells, what)
    anchors = len(cells[-1].anchors)
    scale = f"{anchors} anchors, {rows} rows; timed in calls of {min(TIMED, block(rows), anchors)} anchors."
    report.write(folder, found, averages, settings, scale=scale)
    return found
