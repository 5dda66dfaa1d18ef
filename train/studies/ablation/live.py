"""An ablation inside of a training run: the bank that it draws from, seen by the encoder of the moment.

At every `ablation.every` steps all training rows are encoded anew as the truth. The bank is the snapshot that the steps
before were drawn from: the measure is taken before a refresh of the same step, when the bank is at its stalest. It
leaves the run as it is, draws from no stream of it, and its encodings are not counted as the run's.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from negbank.train.hooks import Hook, Running
from negbank.train.studies.ablation import named, results
from negbank.train.studies.ablation.named import Chosen
from negbank.train.studies.ablation.store import Store
from negbank.train.studies.ablation.sweep import choose, keys_of, measured

from negbank.bank import require_finite
from negbank.bounds import Annotated, Count, Ge, Positive, Section, checked

FOLDER = "ablation"
"""Of the results, in the run's."""


class Live(Hook):
    """Ablates the bank that a run draws from, as the encoder of the moment sees it.

    Args:
        every: Steps between ablations inside the run; None: never.
        temperatures: τ of the targets; None: loss.temperature.
        proposals: The proposals to compare, a list such as [{type: uniform}, {type: nearest, k: 32}]; None: all.
        budgets: Draws R an anchor that everything is reported for.
        anchors: Anchors measured, a fixed random subset; all rows where there are fewer.
        queries: What is searched with. The anchor's bank row, known before the forward pass, or its fresh embedding.
    """

    @checked
    def __init__(
        self,
        *,
        every: Count | None = None,
        temperatures: tuple[Positive, ...] | None = None,
        proposals: Annotated[Chosen | None, Section("proposal", "uniform")] = None,
        budgets: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64),
        anchors: Annotated[int, Ge(2)] = 256,
        queries: tuple[Literal["bank", "fresh"], ...] = ("bank",),
    ) -> None:
        self._every, self.reads_snapshot = every, every is not None
        self._temperatures, self._budgets, self._queries = temperatures, sorted(budgets), queries
        self._proposals, self._anchors = named.every() if proposals is None else proposals, anchors
        self._store: Store | None = None

    def begin(self, run: Running) -> None:
        """Check that every proposal fits the run's rows; of what an interruption left nothing is read yet."""
        self._run, trainer = run, run.trainer
        if self._every is None:
            return
        named.require_fitting(self._proposals, len(trainer.bank.vectors), "ablation.proposals")
        self._names, self._bind = named.named(self._proposals, run.seed)
        self._taus = self._temperatures or (trainer.temperature,)
        self._settings: dict[str, Any] = {
            "every": self._every, "temperatures": self._taus, "proposals": named.settings(self._proposals),
            "budgets": self._budgets, "anchors": self._anchors, "queries": self._queries, "seed": run.seed,
        }  # fmt: skip

    def after(self, step: int) -> None:
        """Measure if an ablation is due after `step` optimiser steps, before the bank is refreshed.

        What was measured at this step or a later one is from before an interruption: it is measured again.

        Raises:
            AblationError: for results of other settings in the folder.
            ValueError: for fresh embeddings that are not finite.
        """
        bank = None if self._run.trainer.refresher is None else self._run.trainer.refresher.snapshot
        if self._every is None or step % self._every != 0 or bank is None:
            return
        store = self._store = self._store or Store(self._run.folder / FOLDER, self._settings)
        later = [key for key in store.done if int(key.level.removeprefix("step ")) >= step]
        if later:
            store.cut(later[0])
        fresh = self._run.inference.embeddings(self._run.splits.train, torch.arange(len(bank)))
        require_finite(fresh, what="embeddings")  # a row of zeros stays: its cosines are 0, as training has them
        truth = torch.nn.functional.normalize(fresh.double(), dim=1)
        rows = choose(bank, self._anchors, self._run.seed)
        keys = keys_of(f"step {step}", self._taus, self._queries, self._names)
        for each in measured(bank, truth, rows, self._bind, keys, budgets=self._budgets, seed=self._run.seed):
            store.add(each)
        found = list(store.done.values())
        results.write(store.folder, found, what="this run", settings=self._settings, rows=len(bank))
