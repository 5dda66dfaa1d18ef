"""Where a run runs, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one; the current device, by its number, where the name has none.

    Raises:
        ValueError: for a device that is not here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"run.device={name}: not available ({str(error).splitlines()[0]}); use auto or cpu") from None


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the machine multiplies it natively, else float32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "float32"


def settled(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as floats: those that are tensors () on a device come in one copy, for which the host waits once."""
    waiting = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    if not waiting:
        return dict(metrics)
    found = torch.stack([value.double() for value in waiting.values()]).cpu().tolist()
    return {**metrics, **dict(zip(waiting, found))}
