"""Uniform random numbers for any device from any generator."""

from __future__ import annotations

import torch
from torch import Tensor


def uniforms(shape: tuple[int, ...], *, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Float64 uniforms in [0, 1) on `device`, drawn on the generator's own device.

    A CPU generator so gives the same draws whatever the device of the rows, and its state fits every checkpoint.
    """
    source = device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(device)
