"""What index "auto" stands for."""

from __future__ import annotations

import math

import torch

EXACT_BELOW = {"cpu": 10_000, "cuda": 1_000_000}
"""Rows below which `auto` searches exactly."""


def choose_factory(rows: int, dim: int, device: torch.device) -> str:
    """The factory string `auto` stands for: exact while that is cheap, then an IVF with about 4√N lists.

    Rows are stored as float16 once float32 lists would pass 4 GiB.
    """
    if rows < EXACT_BELOW["cuda" if device.type == "cuda" else "cpu"]:
        return "Flat"
    lists = max(1, min(round(4 * math.sqrt(rows)), rows // 39))
    return f"IVF{lists},{'Flat' if rows * dim * 4 <= 4 << 30 else 'SQfp16'}"
