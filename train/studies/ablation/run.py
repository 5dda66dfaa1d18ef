"""`negbank ablate`: an ablation into a folder, from which it goes on after an interruption."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from negbank.bounds import Annotated, Count, Ge, Positive, Section, checked
from negbank.owner import owned
from negbank.train.config.sections import Options
from negbank.train.make import make
from negbank.train.studies.ablation import results
from negbank.train.studies.ablation.answer import Answer
from negbank.train.studies.ablation.named import defaults, named
from negbank.train.studies.ablation.sources import Source
from negbank.train.studies.ablation.store import Store
from negbank.train.studies.ablation.sweep import choose, keys_of, measured


@checked
def run(
    *,
    source: Annotated[Options, Section("source", "npy")],
    temperatures: tuple[Positive, ...] = (0.07,),
    proposals: Annotated[Sequence[Options] | None, Section("proposal", "uniform")] = None,
    budgets: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64),
    anchors: Annotated[int, Ge(2)] = 256,
    queries: tuple[Literal["bank", "fresh"], ...] = ("bank",),
    out: str = "ablation",
    seed: Annotated[int, Ge(0)] = 0,
    overwrite: bool = False,
) -> Answer:
    """Measure proposals over stale banks, into a folder, or go on with it; the answer that its report opens with.

    Args:
        source: where the truth and the banks come from.
        temperatures: τ of the targets, and of proposals without one of their own.
        proposals: those to compare, a list such as [{type: uniform}, {type: nearest, k: 32}]; None: each with defaults.
        budgets: draws R an anchor that everything is reported for.
        anchors: rows measured, a fixed random subset; all rows where there are fewer.
        queries: what is searched with: the anchor's bank row, known before the forward pass, or its fresh embedding.
        out: folder of the results.
        seed: of the anchors, the noise and the index.
        overwrite: replace the results that the folder holds.

    Raises:
        ValueError: for inputs that do not fit, before any work.
        OwnedError: when another process measures into the folder.
        AblationError: when the folder holds the results of another ablation.
        DamagedError: for a snapshot that is damaged.
    """
    given: Source = make("source", source, seed=seed)
    rows, proposals = len(given.truth), defaults() if proposals is None else proposals
    for i, each in enumerate(proposals):
        if (k := getattr(each, "k", 1)) >= rows:
            raise ValueError(f"proposals[{i}].k={k}: there are only {rows - 1} other rows; lower k")
    settings = {
        "source": source.model_dump(), "temperatures": temperatures,
        "proposals": [each.model_dump() for each in proposals], "budgets": budgets, "anchors": anchors,
        "queries": queries, "seed": seed,
    }  # fmt: skip
    names, bind = named(proposals, seed)
    keys = {level: keys_of(level, temperatures, queries, names) for level in given.levels}
    total = sum(map(len, keys.values()))
    pace = 0.2 if sys.stderr.isatty() else 10
    with owned(Path(out)):
        store = Store(Path(out), {**settings, "inputs": dict(given.inputs)}, overwrite=overwrite)
        with tqdm(total=total, initial=len(store.done), unit="part", dynamic_ncols=True, mininterval=pace) as bar:
            for level, build in given.levels.items():
                left = [key for key in keys[level] if key not in store.done]
                if not left:
                    continue
                bank = build()
                chosen = choose(bank, anchors, seed)
                bar.set_description(level)
                for found in measured(bank, given.truth, chosen, bind, left, budgets=sorted(budgets), seed=seed):
                    store.add(found)
                    bar.update()
        done = [store.done[key] for level in keys.values() for key in level]
        return results.write(store.folder, done, what=given.what, settings=settings, rows=rows)
