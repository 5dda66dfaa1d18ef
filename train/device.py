"""Where a run runs, and in which precision."""

from __future__ import annotations

import torch


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
