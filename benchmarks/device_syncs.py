"""How often the host waits for the device in a step, and what it launches there, for every kind of negatives.

    python benchmarks/device_syncs.py

Counted on a device that is none (device_stand_in.py): as many as on a GPU where a step takes the same path there, but
for Faiss's own kernels and the random numbers that are drawn on the host. No time is measured. One step each, after
three, on digits with batches of 12 and `refresh` every second step; refreshes themselves are not counted.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from device_stand_in import StandIn

from negbank.train import registry
from negbank.train.build import build
from negbank.train.config import parse


def counted(negatives: dict[str, Any]) -> tuple[int, int]:
    """Syncs and launches of one step."""
    config = {
        "data": {"type": "digits"}, "batches": {"batch_size": 12}, "negatives": negatives,
        "run": {"steps": 12, "device": "meta", "precision": "float32"},
        "encoder": {"projector": {"dim": 16}, "width": 8, "features": 16},
        "refresh": {"every": 2, "unit": "steps", "mode": "full"},
    }  # fmt: skip
    with StandIn() as seen:
        trainer = build(parse(config)[0]).trainer
        for _ in range(3):
            trainer.refresh()
            trainer.step()
        seen.clear()
        trainer.step()
        return sum(seen.syncs.values()), sum(seen.launches.values())


def main() -> None:
    """Print the table."""
    torch.autocast = lambda *_, **__: contextlib.nullcontext()  # type: ignore[misc, assignment]  # knows no `meta`
    print("| negatives | syncs a step | launches a step |\n|---|---|---|")
    for name in registry.REGISTRY["negatives"]:
        print("| {} | {} | {} |".format(name, *counted({"type": name})), flush=True)


if __name__ == "__main__":
    main()
