"""How good an encoder is. One protocol a file; labels are read here and nowhere else.

An evaluation has `baseline()`, measured once before training; `quick()`, cheap enough to repeat during it; `full()`.
"""

from __future__ import annotations

from typing import Protocol


class Evaluation(Protocol):
    """What a run asks of how it measures an encoder: names and numbers."""

    def baseline(self) -> dict[str, float]:
        """What any encoder has to beat; empty where there is nothing of the kind."""
        ...

    def quick(self) -> dict[str, float]: ...

    def full(self) -> dict[str, float]: ...
