"""An ablation inside of a training run: the bank that it draws from, seen by the encoder of the moment.

At every `ablation.every` steps all training rows are encoded anew as the truth. The bank is the snapshot that the steps
before were drawn from: the measure is taken before a refresh of the same step, when the bank is at its stalest. It
leaves the run as it is, draws from no stream of it, and its encodings are not counted as the run's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from negbank.bank import require_finite
from negbank.bounds import Annotated, Count, Ge, Positive, Section, checked
from negbank.train.data.contract import Pairs
from negbank.train.hooks import Hook, Running
from negbank.train.make import Factory
from negbank.train.studies.ablation import results
from negbank.train.studies.ablation.named import defaults, named
from negbank.train.studies.ablation.store import Store
from negbank.train.studies.ablation.sweep import choose, keys_of, measured

FOLDER = "ablation"
"""Of the results, in the run's."""


class Live(Hook):
    """Ablates the bank that a run draws from, as the encoder of the moment sees it.

    Args:
        every: steps between ablations inside the run; None: never.
        temperatures: τ of the targets; None: loss.temperature.
        proposals: those to compare, a list such as [{type: uniform}, {type: nearest, k: 32}]; None: each with defaults.
        budgets: draws R an anchor that everything is reported for.
        anchors: rows measured, a fixed random subset; all rows where there are fewer.
        queries: what is searched with: the anchor's bank row, known before the forward pass, or its fresh embedding.
    """

    @checked
    def __init__(
        self,
        *,
        every: Count | None = None,
        temperatures: tuple[Positive, ...] | None = None,
        proposals: Annotated[Sequence[Factory] | None, Section("proposal", "uniform")] = None,
        budgets: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64),
        anchors: Annotated[int, Ge(2)] = 256,
        queries: tuple[Literal["bank", "fresh"], ...] = ("bank",),
    ) -> None:
        self._every, self.reads_snapshot = every, every is not None
        self._temperatures, self._budgets, self._queries = temperatures, sorted(budgets), queries
        self._proposals = defaults() if proposals is None else [each.section for each in proposals]
        self._anchors = anchors
        self._store: Store | None = None

    def begin(self, run: Running) -> None:
        """Take up the run; of what an interruption left nothing is read yet."""
        self._run = run
        if self._every is not None and isinstance(run.splits.train, Pairs):
            raise ValueError(
                "ablation.every: the target π_i is over the rows that anchor i is one of, and pairs have two kinds of "
                "rows; leave it out, or hold two snapshots of one side against each other with `negbank ablate`"
            )
        self._names, self._bind = named(self._proposals, run.seed)
        self._taus = self._temperatures or (run.trainer.temperature,)
        self._settings: dict[str, Any] = {
            "every": self._every, "temperatures": self._taus,
            "proposals": [each.model_dump() for each in self._proposals], "budgets": self._budgets,
            "anchors": self._anchors, "queries": self._queries, "seed": run.seed,
        }  # fmt: skip

    def after(self, step: int) -> None:
        """Measure if an ablation is due after `step` optimiser steps, before the bank is refreshed.

        What was measured at this step or a later one is from before an interruption: it is measured again.

        Raises:
            AblationError: for results of other settings in the folder.
            ValueError: for fresh embeddings that are not finite.
        """
        bank, seed = next(iter(self._run.trainer.snapshots()), None), self._run.seed
        if self._every is None or step % self._every != 0 or bank is None:
            return
        store = self._store = self._store or Store(self._run.folder / FOLDER, self._settings)
        later = [key for key in store.done if int(key.level.removeprefix("step ")) >= step]
        if later:
            store.cut(later[0])
        fresh = self._run.inference[0].embeddings(self._run.trainer.towers[0].data, torch.arange(len(bank)))
        require_finite(fresh, what="embeddings")  # a row of zeros stays: its cosines are 0, as training has them
        truth = torch.nn.functional.normalize(fresh.double(), dim=1)
        rows, keys = choose(bank, self._anchors, seed), keys_of(f"step {step}", self._taus, self._queries, self._names)
        for each in measured(bank, truth, rows, self._bind, keys, budgets=self._budgets, seed=seed):
            store.add(each)
        found = list(store.done.values())
        results.write(store.folder, found, what="this run", settings=self._settings, rows=len(bank))
