"""Many tasks on as many threads as torch would give one operation, each with one torch thread to itself.

Products of small tiles, each read again while it lies in its core's cache, gain more from this than from many threads
on one product. The tasks spend their time in torch, NumPy and compiled loops, all outside the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch

ALONE = 1 << 24
"""Scores that are found sooner by one thread than by two."""


def threads_for(scores: int, device: torch.device) -> int:
    """How many threads are worth starting for so many scores."""
    return -(-scores // ALONE) if device.type == "cpu" else 1


class OwnThreads:
    """A context in which `run(task, items)` maps a task over items, on at most `most` threads.

    With one thread the tasks run in the caller's, whose torch threads stay as they are.
    """

    def __init__(self, most: int) -> None:
        self._before = torch.get_num_threads()
        self.count = max(1, min(most, self._before))
        self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> OwnThreads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        if self.count > 1:
            torch.set_num_threads(self._before)  # as it was for threads that start after this

    def run(self, task: Callable[[Any], None], items: Iterable[Any]) -> None:
        """Call the task on every item, in no order; the first error is raised."""
        if self.count == 1:
            for item in items:
                task(item)
            return
        for future in [self._pool.submit(task, item) for item in items]:
            future.result()
