"""How every step ends: a gradient that is checked, one step of the optimiser, and where the time went."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class NonFiniteError(RuntimeError):
    """Training diverged; raised before the optimiser step, naming the step and the rows."""

    exit_code = 3
    """Of a run that ends with it."""


class Descent:
    """An optimiser under a schedule of its learning rates, with the steps taken and the seconds of every phase.

    Args:
        optimiser: its groups' learning rates are the peaks.
        schedule: step → factor of the peaks.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, schedule: Callable[[int], float]) -> None:
        self.optimiser, self.schedule = optimiser, schedule
        self.peaks = [group["lr"] for group in optimiser.param_groups]
        self.step_number = 0
        self.seconds: dict[str, float] = defaultdict(float)
        self._unasked: list[tuple[Tensor, Tensor, str]] = []  # values of a device that nobody has waited for

    def __call__(self, backward: Callable[[], None], rows: Tensor) -> float:
        """Descend the gradient that `backward` gives, of the loss of rows (B,); the learning rate of the first group.

        Raises:
            NonFiniteError: before anything is changed by a gradient that is not finite.
        """
        with self.timed("backward"):
            self.optimiser.zero_grad(set_to_none=True)
            backward()
            parameters = (p for group in self.optimiser.param_groups for p in group["params"])
            gradients = [_values(p) for p in parameters if p.grad is not None]
            self.require_finite(nn.utils.get_total_norm(gradients)[None, None], rows, "gradient")
            self._ask()
        with self.timed("optimiser"):
            factor = self.schedule(self.step_number)
            for group, peak in zip(self.optimiser.param_groups, self.peaks):
                group["lr"] = peak * factor
            self.optimiser.step()
        self.step_number += 1
        return self.peaks[0] * factor

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds spent inside as those of a phase."""
        started = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - started

    def require_finite(self, values: Tensor, rows: Tensor, what: str) -> None:
        """Raise NonFiniteError unless values (B, n), each of one of rows (B,), or (1, n) of all of them, are finite.

        Those of a device are asked for together, before the optimiser's step: the host waits for it once a step.
        """
        values = values.detach()
        if values.device.type != "cpu":
            self._unasked.append((values, rows, what))
        elif not math.isfinite(float(values.sum())):
            self._refuse(values, rows, what)

    def _ask(self) -> None:
        waiting, self._unasked = self._unasked, []
        if waiting and not math.isfinite(float(torch.stack([values.sum() for values, *_ in waiting]).sum())):
            for each in waiting:
                if not math.isfinite(float(each[0].sum())):
                    self._refuse(*each)

    def _refuse(self, values: Tensor, rows: Tensor, what: str) -> None:
        bad = rows[~torch.isfinite(values).all(-1)] if len(values) == len(rows) else rows
        wrong = "is not finite, or is zero" if what == "embedding" else "is not finite"
        raise NonFiniteError(
            f"step {self.step_number}: the {what} of rows {bad.unique().tolist()[:8]} {wrong}; the step was not "
            f"taken; start anew in another run.dir, with a lower optim.lr, a higher loss.temperature or "
            f"run.precision=float32"
        )

    def state_dict(self) -> dict[str, Any]:
        """Steps, seconds and the optimiser's state."""
        return {"step": self.step_number, "seconds": dict(self.seconds), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.step_number, self.seconds = state["step"], defaultdict(float, state["seconds"])
        self.optimiser.load_state_dict(state["optimiser"])


def _values(parameter: Tensor) -> Tensor:
    """A parameter's gradient; of a sparse one its values, once the rows in it are distinct."""
    gradient = parameter.grad
    assert gradient is not None
    if not gradient.is_sparse:
        return gradient
    parameter.grad = gradient = gradient.coalesce()
    return gradient.values()
