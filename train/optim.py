"""Optimisers by name, LARS, and the learning rate schedule.

LARS gives every weight matrix w with gradient g a learning rate in proportion to its norm (You et al. 2017,
arXiv:1708.03888, algorithm 1 and eq. 6), here with momentum m, learning rate γ, weight decay β, trust coefficient η:

    λ = η ‖w‖ / (‖g‖ + β ‖w‖),     v ← m v + γ λ (g + β w),     w ← w − v

As in SimCLR (Chen et al. 2020, sec. 2.2), biases and norm parameters, all that has at most one dimension, have λ = 1
and β = 0.
"""

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer


class Lars(Optimizer):
    """Layer-wise adaptive rate scaling with momentum.

    The learning rate is inside the momentum buffer, as in the paper: a later change of it leaves past steps as they
    were. λ is 1 where ‖w‖ or the denominator is 0.

    Args:
        params: parameters or parameter groups.
        lr: γ, at least 0.
        momentum: m in [0, 1).
        weight_decay: β, at least 0; not applied to parameters of at most one dimension.
        trust_coefficient: η, above 0.

    Raises:
        ValueError: for a value out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
    ) -> None:
        for name, value, valid, remedy in (
            ("lr", lr, lr >= 0, "choose at least 0"),
            ("momentum", momentum, 0 <= momentum < 1, "choose one in [0, 1)"),
            ("weight_decay", weight_decay, weight_decay >= 0, "choose at least 0"),
            ("trust_coefficient", trust_coefficient, trust_coefficient > 0, "choose one above 0, such as 0.001"),
        ):
            if not valid:
                raise ValueError(f"{name}={value} is out of range: {remedy}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient; returns the loss of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    decay = group["weight_decay"]
                    norm = torch.linalg.vector_norm(parameter)
                    scale = torch.linalg.vector_norm(update) + decay * norm
                    trust = torch.where((norm > 0) & (scale > 0), group["trust_coefficient"] * norm / scale, 1.0)
                    update = trust * (update + decay * parameter)
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                velocity = state["momentum_buffer"]
                velocity.mul_(group["momentum"]).add_(update, alpha=group["lr"])
                parameter.sub_(velocity)
        return loss


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices and kernels with weight decay, biases and norm parameters without.

    A parameter belongs to the second if it has at most one dimension. A group without parameters is left out.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trainable if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def cosine_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the base learning rate at `step` of `steps`: linear to 1 in `warmup` steps, then a half cosine to 0.

    (step + 1) / warmup before `warmup`, then ½ (1 + cos(π (step − warmup) / (steps − warmup))): no step of a run has
    factor 0, which is reached at step = steps (Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts).

    Raises:
        ValueError: unless 0 ≤ warmup < steps and 0 ≤ step ≤ steps.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup={warmup} must be at least 0 and below steps={steps}: shorten it or train longer")
    if not 0 <= step <= steps:
        raise ValueError(f"step={step} is outside of 0..{steps}: raise steps to the length of the run")
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


Groups = list[dict[str, Any]]

OPTIMISERS: dict[str, Callable[[Groups, float, float, tuple[float, float]], Optimizer]] = {
    "sgd": lambda groups, lr, momentum, betas: SGD(groups, lr=lr, momentum=momentum),
    "adamw": lambda groups, lr, momentum, betas: AdamW(groups, lr=lr, betas=betas),
    "adam": lambda groups, lr, momentum, betas: Adam(groups, lr=lr, betas=betas),
    "lars": lambda groups, lr, momentum, betas: Lars(groups, lr=lr, momentum=momentum),
}
"""Optimisers by name, of parameter groups, learning rate, momentum (`sgd`, `lars`) and betas (`adam`, `adamw`)."""


def build(
    name: str,
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    betas: tuple[float, float] = (0.9, 0.999),
) -> Optimizer:
    """Optimiser of the trainable parameters of `module`, in the groups of `parameter_groups`.

    Args:
        name: a key of `OPTIMISERS`.
        module: what to train.
        lr: base learning rate.
        weight_decay: L2 penalty of `sgd`, `adam` and `lars`; decoupled in `adamw` (Loshchilov & Hutter 2019).
        momentum: for `sgd` and `lars`; the others ignore it.
        betas: decay rates of the moments for `adam` and `adamw`; the others ignore them.

    Raises:
        ValueError: for an unknown name, with the nearest known.
    """
    if name not in OPTIMISERS:
        nearest = difflib.get_close_matches(name, OPTIMISERS, n=1, cutoff=0.0)[0]
        raise ValueError(f"optimiser {name!r} is unknown: did you mean {nearest!r}? Known are {', '.join(OPTIMISERS)}")
    return OPTIMISERS[name](parameter_groups(module, weight_decay), lr, momentum, betas)
