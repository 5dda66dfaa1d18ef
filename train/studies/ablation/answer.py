"""Which proposal wins at the largest budget: by effective draws a ms, by effective draws an encoding, and by mixing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from negbank.train.studies.ablation.average import LEVELS, Average, resampled
from negbank.train.studies.ablation.measurement import Key, Measurement

ByKey = Mapping[Key, Measurement]
BASELINE = "Uniform"
"""The proposal that others are held against, where it is among them."""


class Winner(NamedTuple):
    """The proposal with the most of a measure.

    times: its measure in units of `other`'s, the baseline or the next best; None where there is no other.
    """

    proposal: str
    value: float
    times: Average | None
    other: str | None

    def held(self, of: str) -> str:
        """`Nearest k=64: 12× the effective draws per ms of Uniform (10–14)`, for of = "the effective draws per ms"."""
        if self.times is None:
            return f"{self.proposal}: {self.value:.3g} {of.removeprefix('the ')}"
        ratio, low, high = self.times
        tie = ", no clear difference" if low <= 1 <= high else ""
        return f"{self.proposal}: {ratio:.3g}× {of} of {self.other} ({low:.3g}–{high:.3g}{tie})"


class Best(NamedTuple):
    """Of one setting, or of all together: most effective draws a ms, most an encoding, and least total variation."""

    per_ms: Winner
    per_encoding: Winner
    least: str
    tv: float


class Answer(NamedTuple):
    """What an ablation found: over all settings by geometric means, and by setting (temperature, level, query)."""

    what: str
    budget: int
    overall: Best
    by_setting: dict[tuple[float, str, str], Best]

    def __str__(self) -> str:
        per_ms, per_encoding, least, tv = self.overall
        many = len(self.by_setting)
        return (
            f"For {self.what}: {per_ms.held('the effective draws per ms')}, of drawing alone. "
            f"{per_encoding.held('the effective draws per encoder forward pass')}. "
            f"Least total variation after {self.budget} proposals: {least} ({tv:.2g}). In brackets 95 % "
            f"intervals{f'; geometric means of {many} settings' if many > 1 else ''}."
        )


def answer(found: Sequence[Measurement], what: str) -> Answer:
    """Who wins at the largest budget."""
    by_key = {each.key: each for each in found}
    settings = list(dict.fromkeys((key.temperature, key.level, key.query) for key in by_key))
    best = {setting: _best(by_key, [setting]) for setting in settings}
    return Answer(what, found[0].budgets[-1], _best(by_key, settings), best)


def _best(by_key: ByKey, settings: Sequence[tuple[float, str, str]]) -> Best:
    names = list(dict.fromkeys(key.proposal for key in by_key))
    tv = {name: float(_logs(by_key, name, settings, "tv")[0].exp()) for name in names}
    least = min(names, key=lambda name: tv[name])
    per_ms, per_encoding = (
        _winner({name: _logs(by_key, name, settings, measure) for name in names})
        for measure in ("ess_per_ms", "ess_per_encoding")
    )
    return Best(per_ms, per_encoding, least, tv[least])


def _winner(logs: Mapping[str, Tensor]) -> Winner:
    """Of the logarithms that `_logs` gives for each proposal."""
    order = sorted(logs, key=lambda name: -float(logs[name][0]))
    first = order[0]
    other = BASELINE if BASELINE in logs and first != BASELINE else next(iter(order[1:]), None)
    times = None
    if other is not None:
        ratio = (logs[first] - logs[other]).exp()
        low, high = ratio[1:].quantile(LEVELS).tolist()
        times = Average(float(ratio[0]), low, high)
    return Winner(first, float(logs[first][0].exp()), times, other)


def _logs(by_key: ByKey, name: str, settings: Sequence[tuple[float, str, str]], measure: str) -> Tensor:
    """Log of a measure's mean over anchors, averaged over settings: as measured, then for every resample (1 + S,)."""
    found = [by_key[Key(name, *setting)] for setting in settings]
    means = [torch.cat((each.values[measure][:, -1].mean()[None], resampled(each, measure)[:, -1])) for each in found]
    return torch.stack(means).clamp(min=1e-300).log().mean(0)
