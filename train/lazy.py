"""AdamW that, of a parameter with a sparse gradient, moves the rows in it alone, as `torch.optim.SparseAdam` does.

    rows r of the gradient:   m_r ← β₁ m_r + (1 − β₁) g_r     v_r ← β₂ v_r + (1 − β₂) g_r²
                              θ_r ← θ_r − lr · √(1 − β₂ᵗ) / (1 − β₁ᵗ) · m_r / (√v_r + ε)

A table of token embeddings has a gradient in the step's few thousand tokens, and Adam over all of it would cost more
than the rest of the step. Rows without a gradient stay, and have no weight decay. All other parameters are AdamW's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW


class LazyAdamW(AdamW):
    """`torch.optim.AdamW`, and its lazy form for parameters with sparse gradients."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see `torch.optim.Optimizer.step`."""
        sparse = [
            (p, p.grad, group)
            for group in self.param_groups
            for p in group["params"]
            if p.grad is not None and p.grad.is_sparse
        ]
        for parameter, gradient, group in sparse:
            self._move(parameter, gradient.coalesce(), group)
            parameter.grad = None
        try:
            return super().step(closure)
        finally:
            for parameter, gradient, _ in sparse:
                parameter.grad = gradient

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (first, second) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter) for _ in range(2))
        state["step"] += 1
        rows, values, step = gradient.indices()[0], gradient.values(), int(state["step"])
        mean = state["exp_avg"][rows].lerp_(values, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(values, values, value=1 - second)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        rate = group["lr"] * (1 - second**step) ** 0.5 / (1 - first**step)
        parameter[rows] -= rate * mean / square.sqrt_().add_(group["eps"])
