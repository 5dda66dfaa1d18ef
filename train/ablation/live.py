"""An ablation inside of a training run: the bank that it draws from, seen by the encoder of the moment.

At every `ablation.every` steps all training rows are encoded anew as the truth. The bank is the snapshot that the steps
before were drawn from: the measure is taken before a refresh of the same step, when the bank is at its stalest. It
leaves the run as it is, draws from no stream of it, and its encodings are not counted as the run's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from negbank.train.ablation.cells import Bind, choose, keys_of, measured
from negbank.train.ablation.run import named, write
from negbank.train.ablation.store import Store
from negbank.train.build import Assembly
from negbank.train.config import to_dict
from torch import Tensor

from negbank import Snapshot
from negbank.bank import require_finite


class Live:
    """Ablates the bank that a run draws from, as the encoder of the moment sees it, into `folder`.

    Args:
        folder: of the results.
        every: steps between ablations.
        encode: rows (B,) → embeddings (B, D) of the current encoder.
        names, bind: of the proposals, and what binds them.
        temperatures, budgets, anchors, queries, seed: see `ablate`.
        settings: what the results depend on, beside the run's own configuration.

    Raises:
        AblationError: for results of other settings in the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every: int,
        encode: Callable[[Tensor], Tensor],
        names: Sequence[str],
        bind: Bind,
        temperatures: Sequence[float],
        budgets: Sequence[int],
        anchors: int,
        queries: Sequence[str],
        seed: int,
        settings: Mapping[str, Any],
    ) -> None:
        self._every, self._encode, self._names, self._bind = every, encode, list(names), bind
        self._temperatures, self._budgets, self._queries = temperatures, sorted(budgets), queries
        self._anchors, self._seed, self._settings = anchors, seed, settings
        self._store = Store(folder, settings)

    def step(self, step: int, bank: Snapshot | None) -> None:
        """Measure if an ablation is due after `step` optimiser steps, before the bank is refreshed.

        Cells of this step or a later one are from before an interruption: they are measured again.

        Raises:
            ValueError: for fresh embeddings that are not finite.
        """
        if bank is None or step % self._every != 0:
            return
        later = [key for key in self._store.cells if int(key.level.removeprefix("step ")) >= step]
        if later:
            self._store.cut(later[0])
        fresh = self._encode(torch.arange(len(bank)))
        require_finite(fresh, what="embeddings")  # a row of zeros stays: its cosines are 0, as training has them
        truth = torch.nn.functional.normalize(fresh.double(), dim=1)
        rows = choose(bank, self._anchors, self._seed)
        keys = keys_of(f"step {step}", self._temperatures, self._queries, self._names)
        for cell in measured(bank, truth, rows, self._bind, keys, budgets=self._budgets, seed=self._seed):
            self._store.add(cell)
        cells = list(self._store.cells.values())
        write(self._store.folder, cells, what="this run", settings=self._settings, rows=len(bank))


def live(assembly: Assembly, folder: Path) -> Live | None:
    """The ablation that `config.ablation` asks for inside of a run; None when it asks for none."""
    config, options = assembly.config, assembly.config.ablation
    if options.every is None:
        return None
    temperatures = [config.loss.temperature] if options.temperatures is None else options.temperatures
    names, bind = named(options.proposals, config.run.seed)
    return Live(
        folder,
        every=options.every,
        encode=functools.partial(assembly.inference.embeddings, assembly.splits.train),
        names=names,
        bind=bind,
        temperatures=temperatures,
        budgets=options.budgets,
        anchors=options.anchors,
        queries=options.queries,
        seed=config.run.seed,
        settings={**to_dict(config)["ablation"], "temperatures": temperatures, "seed": config.run.seed},
    )
