"""`negbank ablate`: an ablation into a folder, from which it goes on after an interruption."""

from __future__ import annotations

import inspect
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

from negbank.train.build import chosen
from negbank.train.options import Ablation
from negbank.train.studies.ablation import named, results
from negbank.train.studies.ablation.answer import Answer
from negbank.train.studies.ablation.named import Chosen
from negbank.train.studies.ablation.sources import SOURCES, Source
from negbank.train.studies.ablation.store import Store
from negbank.train.studies.ablation.sweep import choose, keys_of, measured
from tqdm import tqdm

from negbank.bounds import Annotated, Count, Ge, Positive, Section, checked


def from_config(config: Ablation, *, overwrite: bool = False) -> Answer:
    """`run` as a configuration says."""
    options = {k: v for k, v in vars(config.source).items() if k != "type"}
    source = partial(SOURCES[config.source.type], **options)
    proposals = [chosen(each) for each in config.proposals]
    return run(overwrite, **{**vars(config), "source": source, "proposals": proposals})


@checked
def run(
    overwrite: bool = False,
    /,
    *,
    source: Annotated[partial[Source], Section("source", "npy")],
    temperatures: tuple[Positive, ...] = (0.07,),
    proposals: Annotated[Chosen | None, Section("proposal", "uniform")] = None,
    budgets: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64),
    anchors: Annotated[int, Ge(2)] = 256,
    queries: tuple[Literal["bank", "fresh"], ...] = ("bank",),
    out: str = "ablation",
    seed: Annotated[int, Ge(0)] = 0,
) -> Answer:
    """Measure proposals over stale banks, into a folder, or go on with it; the answer that its report opens with.

    Args:
        source: Where the truth and the banks come from.
        temperatures: τ of the targets, and of proposals without one of their own.
        proposals: The proposals to compare, a list such as [{type: uniform}, {type: nearest, k: 32}]; None: all.
        budgets: Draws R an anchor that everything is reported for.
        anchors: Anchors measured, a fixed random subset; all rows where there are fewer.
        queries: What is searched with. The anchor's bank row, known before the forward pass, or its fresh embedding.
        out: Folder of the results.
        seed: Of the anchors, the noise and the index.

    Raises:
        ValueError: for inputs that do not fit, before any work.
        AblationError: when the folder holds the results of another ablation.
        DamagedSnapshotError: for a snapshot that is damaged.
    """
    proposals = named.every() if proposals is None else proposals
    drawn = {"seed": seed} if "seed" in inspect.signature(source.func).parameters else {}
    given = source(**drawn)
    named.require_fitting(proposals, len(given.truth))
    settings: dict[str, Any] = {
        "source": {"type": source.func.__name__, **source.keywords}, "temperatures": temperatures,
        "proposals": named.settings(proposals), "budgets": budgets, "anchors": anchors, "queries": queries,
        "seed": seed,
    }  # fmt: skip
    store = Store(Path(out), {**settings, "inputs": dict(given.inputs)}, overwrite=overwrite)
    names, bind = named.named(proposals, seed)
    keys = {level: keys_of(level, temperatures, queries, names) for level in given.levels}
    total = sum(len(each) for each in keys.values())
    pace = 0.2 if sys.stderr.isatty() else 10
    with tqdm(total=total, initial=len(store.done), unit="part", dynamic_ncols=True, mininterval=pace) as bar:
        for level, build in given.levels.items():
            left = [key for key in keys[level] if key not in store.done]
            if not left:
                continue
            bank = build()
            rows = choose(bank, anchors, seed)
            bar.set_description(level)
            for each in measured(bank, given.truth, rows, bind, left, budgets=sorted(budgets), seed=seed):
                store.add(each)
                bar.update()
    found = [store.done[key] for each in keys.values() for key in each]
    return results.write(store.folder, found, what=given.what, settings=settings, rows=len(given.truth))
