"""What a method keeps between steps beyond the encoder, its optimiser and the images, in bytes.

Tensors and arrays are found by walking the objects that hold them, one storage counted once, and a Faiss index by its
serialised form. Of a step's own temporaries nothing is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from negbank.index import FaissIndex
from negbank.train.hooks import Hook, Running
from negbank.train.trainer import Trainer


class Memory(Hook):
    """The bytes that a run's parts hold at its end."""

    def begin(self, run: Running) -> None:
        """Remember the run."""
        self._trainer = run.trainer

    def finish(self) -> dict[str, Any]:
        """`bytes`: see `held`."""
        return {"bytes": held(self._trainer)}


class _Seen(NamedTuple):
    objects: set[int]
    storages: set[int]


def held(trainer: Trainer) -> dict[str, int]:
    """Bytes by holder: bank and snapshot (with its index and graph) where one is in use, momentum encoder, samplers,
    of all towers.

    The negatives' part is a queue, a cache, chains, moving averages, what a proposal precomputes, or a list of mined
    rows. Uniform batches keep their order alone, as every method does, and count nothing, as do mapped files.
    """
    parts = {
        "bank": [tower.bank for tower in trainer.towers if trainer.refreshers],
        "snapshot": trainer.snapshots(),
        "momentum_encoder": trainer.slow,
        "negatives": [tower.negatives for tower in trainer.towers],
        "batches": None if trainer.batches.uniform else trainer.batches,
    }
    seen = _Seen(set(), set())
    return {name: _bytes(part, seen) for name, part in parts.items()}


def _bytes(part: Any, seen: _Seen) -> int:
    total = 0
    for tensor in _tensors(part, seen):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen.storages:
            seen.storages.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _tensors(value: Any, seen: _Seen) -> Iterator[Tensor]:
    """All that can be reached from `value` by attributes and containers; objects already seen are not entered again."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.memmap):  # read where it lies, in memory that the system can take back
        return
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(value)
    elif id(value) in seen.objects or isinstance(value, type | str | bytes | int | float) or value is None:
        return
    else:
        seen.objects.add(id(value))
        if isinstance(value, nn.Module):
            inner: Any = (*value.parameters(), *value.buffers())
        elif isinstance(value, Mapping):
            inner = value.values()
        elif isinstance(value, list | tuple | set):
            inner = value
        else:
            inner = getattr(value, "__dict__", {}).values()
        for each in inner:
            yield from _tensors(each, seen)
        if isinstance(value, FaissIndex):
            yield from _tensors(value.state()["bytes"], seen)
