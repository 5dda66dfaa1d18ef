"""A run that goes on with another length than it was begun with: what may change, and what that does.

    steps 0 .. T              then on to T' > T
    a half cosine of T        a half cosine of T'       optim.schedule=cosine: the rate jumps at T
    constant                  constant                  optim.schedule=constant: as if it had been T' from the beginning

A run that ends takes its last checkpoint before the refresh and the evaluation that would follow the step in a longer
one. They are due when it goes on, so that under a constant rate it has the same bits as a run of T' steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LENGTH = ("steps", "epochs")


def without_length(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration but for how long the run is."""
    return {**config, "run": {key: value for key, value in config["run"].items() if key not in LENGTH}}


def said(config: Any, *, step: int, before: int, total: int, rates: tuple[float, float]) -> str:
    """What another length does to a run, for people.

    Args:
        config: of the run as it goes on.
        step: of its checkpoint.
        before, total: optimiser steps of the run then and now.
        rates: the factor of the learning rate at this step, then and now.
    """
    did = f"the run had {before} steps and has {total} now; from step {step} on the learning rate"
    if config.optim.schedule == "constant":
        whole = ", as in a run of that length from the beginning" if not 0 < config.optim.warmup < 1 else ""
        return f"{did} stays at its peak{whole}"
    return (
        f"{did} follows the half cosine of {total} steps: {rates[1]:.3g} of its peak where it was {rates[0]:.3g}; "
        f"optim.schedule=constant has no such jump"
    )
