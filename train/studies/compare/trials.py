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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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
    config: Any

    @property
    def folder(self) -> Path:
        return Path(self.config.run.dir)

    def __str__(self) -> str:
        budget = "tuning" if self.budget == TUNING else f"equal {self.budget}"
        return f"{self.method}, {budget}, lr {self.lr:g}, seed {self.seed}"


class Plan:
    """Makes the trials of a comparison.

    Args:
        configs: the run of each method.
        out: folder of the trials' folders.
        seeds, lr, tune_seed: as `run` has them.
        reference: the method whose encodings are the budget; the first one by default.
        gradient_error: that section of the first seed's runs at equal steps.
    """

    def __init__(
        self,
        configs: Mapping[str, Any],
        out: str,
        *,
        seeds: Sequence[int],
        lr: Sequence[float],
        tune_seed: int | None = None,
        reference: str | None = None,
        gradient_error: Mapping[str, Any] | None = None,
    ) -> None:
        self.configs, self.seeds, self.lr = configs, seeds, lr
        self.reference = reference or next(iter(configs))
        self._out, self._tune_seed, self._gradient_error = Path(out), tune_seed, gradient_error or {}

    def tuning(self) -> list[Trial]:
        """Every method at every learning rate; none where there is one rate."""
        if self._tune_seed is None or len(self.lr) == 1:
            return []
        return [self._trial(method, TUNING, lr, self._tune_seed) for method in self.configs for lr in self.lr]

    def steps(self, rates: Mapping[str, float]) -> list[Trial]:
        """Every method with every seed, at its learning rate."""
        return [
            self._trial(method, STEPS, rates[method], seed)
            for seed in self.seeds
            for method in self.configs
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
        config = self.configs[method].model_copy(deep=True)
        config.run.seed, config.optim.lr = seed, lr
        for key, value in self._gradient_error.items() if budget == STEPS and seed == self.seeds[0] else ():
            setattr(config.gradient_error, key, value)
        config.run.dir = str(self._out / method / budget / f"lr{lr:g}" / f"seed{seed}")
        if steps is not None:
            if config.optim.warmup >= 1:  # a share stays the same
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
