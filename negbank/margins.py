"""How near a positive a candidate may score before it is taken for a positive that nobody has marked.

A candidate of score s is too near a positive of score p, by a margin m, when

    absolute    s + m > p
    relative    s > p − |p| m        for p > 0 that is s > (1 − m) p, which a negative p would turn round

One rule for the miner, whose scores are those of the embeddings it was given, and for training, whose scores are fresh.
"""

from __future__ import annotations

import math
from typing import Any


def near_positive(s: Any, p: Any, *, absolute: float | None = None, relative: float | None = None) -> Any:
    """Which of scores s are too near positives of scores p, by one margin or the other; without any, none is: bool.

    Args:
        s, p: arrays, or tensors, of shapes that go together.
    """
    near = s > math.inf
    if absolute is not None:
        near = near | (s + absolute > p)
    if relative is not None:
        near = near | (s > p - abs(p) * relative)
    return near


def relative_margin(share: float | None) -> float | None:
    """The relative margin under which scores up to this share of a positive's are kept."""
    return None if share is None else 1.0 - share
