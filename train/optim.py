"""Optimisers by name, their parameter groups, and the learning rate schedule."""

from __future__ import annotations

import math
from typing import Annotated, Any

from torch import nn
from torch.optim import SGD, Adam, Optimizer

from negbank.bounds import Ge, Gt, Le, Lt
from negbank.train.lazy import LazyAdamW

Decay = Annotated[float, Ge(0), Lt(1)]
Rate = Annotated[float, Gt(0), Le(1e30)]
"""Of learning: more overflows in float32 before there is anything to diverge."""


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


def constant_with_warmup(step: int, steps: int, warmup: int) -> float:
    """Factor on the base learning rate at `step`: linear to 1 in `warmup` steps, then 1 however long the run is.

    Raises:
        ValueError: as `cosine_with_warmup`.
    """
    cosine = cosine_with_warmup(step, steps, warmup)
    return cosine if step < warmup else 1.0


SCHEDULES = {"cosine": cosine_with_warmup, "constant": constant_with_warmup}


def factor(section: Any, step: int, steps: int) -> float:
    """That of a section's `schedule` and `warmup` at a step of a run of so many."""
    return SCHEDULES[section.schedule](step, steps, warmup_steps(section.warmup, steps)[0])


def warmup_steps(warmup: float, steps: int) -> tuple[int, list[str]]:
    """Steps of warm-up, given as steps or as a share of the run, and a note where there are not as many."""
    wanted = round(warmup * steps) if warmup < 1 else int(warmup)
    if wanted < steps:
        return wanted, []
    cut = steps // 10
    return cut, [f"optim.warmup={wanted}: the run has only {steps} steps; its warm-up is a tenth of them, {cut}"]


def adamw(
    module: nn.Module,
    *,
    lr: Rate = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 1e-4,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
) -> Optimizer:
    """AdamW: Adam with decoupled weight decay (Loshchilov & Hutter 2019); lazy for token tables.

    Args:
        module: what to train.
        lr: peak learning rate.
        weight_decay: of weights, not of biases and norms.
        betas: decay of the two moments.
    """
    return LazyAdamW(parameter_groups(module, weight_decay), lr=lr, betas=betas)


def adam(
    module: nn.Module,
    *,
    lr: Rate = 1e-3,
    weight_decay: Annotated[float, Ge(0)] = 1e-4,
    betas: tuple[Decay, Decay] = (0.9, 0.999),
) -> Optimizer:
    """Adam (Kingma & Ba 2015), with weight decay as an L2 penalty.

    Args:
        module: what to train.
        lr: peak learning rate.
        weight_decay: of weights, not of biases and norms.
        betas: decay of the two moments.
    """
    return Adam(parameter_groups(module, weight_decay), lr=lr, betas=betas)


def sgd(
    module: nn.Module,
    *,
    lr: Rate = 0.06,
    weight_decay: Annotated[float, Ge(0)] = 5e-4,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
) -> Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        module: what to train.
        lr: peak learning rate.
        weight_decay: of weights, not of biases and norms.
        momentum: share of the last step that is kept.
    """
    return SGD(parameter_groups(module, weight_decay), lr=lr, momentum=momentum)
