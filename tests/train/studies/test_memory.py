"""What a run's parts hold, against what they are made of."""

from __future__ import annotations

import copy

import numpy as np

from negbank.train.build import build
from negbank.train.config import parse
from negbank.train.studies.memory import held

RUN = {
    "data": {"type": "digits", "rows": 300},
    "encoder": {"width": 8, "features": 16, "projector": {"hidden": 16, "dim": 8}},
    "batches": {"batch_size": 8},
    "refresh": {"every": 2, "unit": "steps"},
    "eval": {"every": 2, "max_rows": 100, "global_rows": 50},
    "run": {"steps": 6, "log_every": 2},
}


def test_memory_is_what_is_held(tmp_path):
    def bytes_of(negatives):
        trainer = build(parse({**copy.deepcopy(RUN), "negatives": negatives})[0]).trainer
        for _ in range(3):
            trainer.refresh()
            trainer.step()
        return trainer, held(trainer)

    _, simclr = bytes_of({"type": "in_batch"})
    assert sum(simclr.values()) < 16
    np.save(tmp_path / "guide.npy", np.ones((300, 50), dtype=np.float32))
    _, guided = bytes_of({"type": "in_batch", "margin_pos": 0.0, "guide": str(tmp_path / "guide.npy")})
    assert sum(guided.values()) < 16  # a file is no memory
    trainer, moco = bytes_of({"type": "moco", "queue": 64})
    assert moco["negatives"] >= 64 * (8 * 4 + 8)  # keys and ids
    parts = (*trainer.slow[0].parameters(), *trainer.slow[0].buffers())
    assert moco["momentum_encoder"] == sum(p.nbytes for p in parts)
    _, sogclr = bytes_of({"type": "sogclr"})
    assert sogclr["negatives"] == 300 * 2 * 4
    assert (sogclr["bank"], sogclr["snapshot"]) == (0, 0)
    trainer, logq = bytes_of({"type": "importance", "draws": 4, "proposal": {"type": "nearest", "k": 4}})
    assert logq["bank"] == 300 * (8 * 4 + trainer.towers[0].bank.written_at.element_size())
    assert logq["snapshot"] >= 300 * 8 * 4
