"""LARS gives every weight matrix w with gradient g a learning rate in proportion to its norm.

You et al. 2017, arXiv:1708.03888, algorithm 1 and eq. 6, here with momentum m, learning rate γ, weight decay β and
trust coefficient η:

    λ = η ‖w‖ / (‖g‖ + β ‖w‖),     v ← m v + γ λ (g + β w),     w ← w − v

As in SimCLR (Chen et al. 2020, sec. 2.2), biases and norm parameters, all that has at most one dimension, have λ = 1
and β = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from negbank.bounds import Ge, Gt, Le, Lt, Positive, checked
from negbank.train.optim import parameter_groups


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

    @checked
    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: Annotated[float, Ge(0)],
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
        weight_decay: Annotated[float, Ge(0)] = 0.0,
        trust_coefficient: Positive = 0.001,
    ) -> None:
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


def lars(
    module: nn.Module,
    *,
    lr: Annotated[float, Gt(0), Le(1e30)] = 0.06,
    weight_decay: Annotated[float, Ge(0)] = 5e-4,
    momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
) -> Optimizer:
    """LARS (You et al. 2017): a rate for each weight matrix in proportion to its norm; for large batches.

    Args:
        module: what to train.
        lr: peak learning rate.
        weight_decay: of weights, not of biases and norms.
        momentum: share of the last step that is kept.
    """
    return Lars(parameter_groups(module, weight_decay), lr=lr, momentum=momentum)
