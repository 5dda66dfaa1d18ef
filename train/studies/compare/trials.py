"""The trials of a comparison, each an ordinary run, and the two budgets that make them comparable.

    steps        all methods take base.run.steps optimiser steps
    encodings    all methods make as many encoder forward passes as the reference does in its equal steps: the step at
                 which the method had made so many in its equal-steps run; optim.warmup is scaled with the steps, so
                 that it is the same share of every run

Encodings are forward passes of single images in training, with or without gradient: two views a row, drawn rows, the
keys of a momentum encoder, rows of a cache, and what refreshes of the bank encode. Evaluation is not among them. A
method's are measured in its first equal-steps run, which is the tuning run of its learning rate where there is one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from negbank.train.options import Comparison, Config

Curve = Sequence[tuple[int, int]]
"""Steps taken and encodings made by then, both rising, from (0, 0) to the end of a run."""
STEPS, ENCODINGS, TUNING = "steps", "encodings", "tuning"
"""Budgets. Tuning runs have the one of equal steps, and a seed of their own."""


class Trial(NamedTuple):
    """One run of a comparison; two of equal budget that are the same run share its folder."""

    method: str
    budget: str
    lr: float
    seed: int
    config: Config

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)

    def __str__(self) -> str:
        budget = "tuning" if self.budget == TUNING else f"equal {self.budget}"
        return f"{self.method}, {budget}, lr {self.lr:g}, seed {self.seed}"


class Plan:
    """Makes the trials of a comparison.

    Args:
        comparison: checked by `negbank.train.config.load`.
        configs: the run of each method, from `negbank.train.config.method_configs`.
    """

    def __init__(self, comparison: Comparison, configs: Mapping[str, Config]) -> None:
        self._comparison, self._configs = comparison, configs
        self.reference = comparison.reference or next(iter(configs))

    def tuning(self) -> list[Trial]:
        """Every method at every learning rate; none where there is one rate."""
        seed, rates = self._comparison.tune_seed, self._comparison.lr
        if seed is None or len(rates) == 1:
            return []
        return [self._trial(method, TUNING, lr, seed) for method in self._configs for lr in rates]

    def steps(self, rates: Mapping[str, float]) -> list[Trial]:
        """Every method with every seed, at its learning rate."""
        return [
            self._trial(method, STEPS, rates[method], seed)
            for seed in self._comparison.seeds
            for method in self._configs
            if method in rates
        ]

    def encodings(self, rates: Mapping[str, float], measured: Mapping[str, Curve]) -> list[Trial]:
        """The same at as many encodings as the reference; the run of equal steps itself where that is as many steps.

        Args:
            rates: learning rate of each method.
            measured: encodings of each method over base.run.steps steps; a method without is left out.
        """
        trials, budget = [], measured[self.reference][-1][1]
        for steps_trial in self.steps(rates):
            if steps_trial.method in measured:
                total = steps_trial.config.run.steps or 0
                steps = equal_steps(measured[steps_trial.method], budget)
                same = steps_trial._replace(budget=ENCODINGS)
                trials.append(same if steps == total else self._trial(*same[:4], steps=steps))
        return trials

    def _trial(self, method: str, budget: str, lr: float, seed: int, *, steps: int | None = None) -> Trial:
        config = copy.deepcopy(self._configs[method])
        config.run.seed, config.optim.lr = seed, lr
        if budget == STEPS and seed == self._comparison.seeds[0]:
            config.gradient_error = copy.deepcopy(self._comparison.gradient_error)
        config.run.dir = str(Path(self._comparison.out) / method / budget / f"lr{lr:g}" / f"seed{seed}")
        if steps is not None:
            config.optim.warmup = config.optim.warmup * steps // (config.run.steps or steps)
            config.run.steps = steps
        return Trial(method, budget, lr, seed, config)


def equal_steps(curve: Curve, budget: int) -> int:
    """The steps in which a method makes `budget` encodings, at least one; beyond the curve's end at its mean rate.

    The rate may rise: a chain without a state has none to encode.
    """
    last, made = curve[-1]
    if budget >= made:
        return max(1, round(last * budget / made))
    return max(1, round(float(np.interp(budget, [m for _, m in curve], [s for s, _ in curve]))))
