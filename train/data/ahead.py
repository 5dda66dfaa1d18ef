"""Batches of rows and their views, read ahead of the step in worker processes, as if they were read in it.

    step t:      workers read steps t + 1, t + 2, ...        rows: of the batch sampler; seeds: of step, tower and slot
    drawn rows:  with them, where negatives can be drawn now: no row of the batch is in one that comes before it
    a snapshot:  what was read ahead is dropped, and the sampler goes on from the last batch that was used

Views depend on rows and seeds alone and the sampler on its state alone, so that nothing tells the number of workers:
neither rows nor views, nor what a checkpoint holds. A batch whose sampler plans from snapshots is read ahead within its
epoch only, for a plan made just before a refresh would be made in vain.

Workers are spawned, for a forked child may hang in libraries with threads, and have one thread each. They are sent the
data once, tensors as shared memory, and stay for the whole run.
"""

from __future__ import annotations

import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from negbank.samplers.batches import BatchSampler
from negbank.samplers.negatives import Ticket
from negbank.snapshot import Snapshot
from negbank.train.data.contract import Data

PREFETCH = 2
"""Batches that each worker is ahead."""


class Fetched(NamedTuple):
    """A batch.

    Attributes:
        rows: int64 (B,), on the device.
        inputs: for each tower its inputs in pieces, on the device: one view of each of rows, as often as there are
            views (all first ones, then all second ones).
        tickets: of every direction's negatives, where they were drawn ahead.
        further: for each tower, in pieces, one view of the further rows of those tickets.
    """

    rows: Tensor
    inputs: tuple[list[Any], ...]
    tickets: list[Ticket] | None = None
    further: tuple[list[Any], ...] = ()


class Request(NamedTuple):
    """What a worker is to read: arrays, which travel by value. A request of a `turn` that is over is not answered.

    rows (B,), seeds (V·B,) of each tower; further: of each tower the rows that were drawn for, and their seeds.
    """

    turn: int
    step: int
    rows: np.ndarray
    seeds: tuple[np.ndarray, ...]
    further: tuple[tuple[np.ndarray, np.ndarray], ...] = ()


class Waiting(NamedTuple):
    """A request that was not used yet, the batch sampler's state before it, and the tickets of its drawn rows."""

    state: dict[str, Any]
    request: Request
    tickets: list[Ticket] | None


class Failure(NamedTuple):
    """A ValueError of the data in a worker."""

    message: str
    trace: str


class Ahead:
    """The batches of a run.

    Args:
        data: of each tower.
        batches: which rows meet; asked epoch after epoch without end.
        seeds: (step, tower, slots (n,)) → int64 (n,), the seed of each input. Slot v·B + i is view v of row i.
        views: of each row, for every tower.
        piece: inputs of a piece at most; None: all in one. Rows are decoded once a piece.
        workers: processes that read ahead; 0: none, nothing is read before it is asked for.
        device: where batches go. To a GPU they are copied from pinned memory, beside its work.
        draw: (step, rows (B,), rows met since (M,)) → every direction's tickets, and for each tower the further rows
            that they ask for; None where negatives cannot be drawn yet. Asked by readers ahead alone.
    """

    def __init__(
        self,
        data: Sequence[Data],
        batches: BatchSampler,
        *,
        seeds: Callable[[int, int, Tensor], Tensor],
        views: int,
        piece: int | None,
        workers: int,
        device: torch.device,
        draw: Callable[[int, Tensor, Tensor], tuple[list[Ticket], list[Tensor]] | None] | None = None,
    ) -> None:
        self._batches, self._seeds, self._views, self._draw = batches, seeds, views, draw
        self._workers, self._device = workers, device
        self._reader = Reader(data, piece)
        self._queue: deque[Waiting] = deque()
        self._step = 0
        self._stream = self._requests()
        self._loader = None if workers == 0 else self._start()
        self._answers: Iterator[Any] | None = None

    def next(self, step: int) -> Fetched:
        """The next batch, its views as of `step`.

        Raises:
            ValueError: as the data does, or where it cannot be sent to a worker.
            RuntimeError: when a worker died.
        """
        if step != self._step:
            self.forget()
            self._step = step
        tickets = None
        if self._loader is None:
            request = next(self._stream)
            inputs = self._reader.inputs(request)
        else:
            inputs = self._answer(self._loader)
            _, request, tickets = self._queue.popleft()
        if isinstance(inputs, Failure):
            raise ValueError(inputs.message) from RuntimeError(f"in a worker:\n{inputs.trace}")
        rows = torch.from_numpy(request.rows).to(self._device)
        self._step = step + 1
        views, further = (tuple([self._moved(part) for part in pieces] for pieces in each) for each in inputs)
        return Fetched(rows, views, tickets, further)

    def read(self, tower: int, rows: Tensor, seeds: Tensor) -> list[Any]:
        """One view of each of rows (n,) of a tower, read now and in this process, in pieces on the device."""
        return [self._moved(part) for part in self._reader.pieces(tower, rows.cpu(), seeds)]

    def update(self, snapshot: Snapshot) -> None:
        """Have the batches that were not used yet planned from a newer snapshot."""
        self.forget()
        self._batches.update(snapshot)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's, after the last batch that was used."""
        return self._queue[0].state if self._queue else self._batches.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch that was used. Call it after `update` with the snapshot that was in use."""
        self.forget()
        self._batches.load_state_dict(state)

    def close(self) -> None:
        """End the workers."""
        self.forget()
        self._loader = None

    def _moved(self, inputs: Any) -> Any:
        return inputs.to(self._device, non_blocking=True)

    def forget(self) -> None:
        """Drop what was read ahead, for rows or draws would be others now, and go on from there."""
        self._batches.load_state_dict(self.state_dict())
        self._queue.clear()
        self._reader.turn += 1
        self._stream, self._answers = self._requests(), None

    def _requests(self) -> Iterator[Request]:
        """The batches to come, from the sampler's state and the step on; of one epoch where workers are used."""
        step = None
        while True:
            epoch = iter(self._batches)
            while True:
                before = {} if self._workers == 0 else self._batches.state_dict()
                if (found := next(epoch, None)) is None:
                    break
                step = self._step if step is None or self._workers == 0 else step + 1
                towers, inside = range(len(self._reader.data)), self._views * len(found)
                seeds = tuple(self._seeds(step, tower, torch.arange(inside)).numpy() for tower in towers)
                request = Request(int(self._reader.turn), step, np.array(found, dtype=np.int64), seeds)
                if self._workers > 0:
                    tickets, further = self._drawn(request)
                    slots = [torch.arange(len(rows)) + inside for rows in further]
                    own = [self._seeds(step, tower, each).numpy() for tower, each in enumerate(slots)]
                    drawn = tuple((rows.cpu().numpy(), each) for rows, each in zip(further, own))
                    request = request._replace(further=drawn)
                    self._queue.append(Waiting(before, request, tickets))
                yield request
            if self._workers > 0 and getattr(self._batches, "reads_snapshot", True):
                return

    def _drawn(self, request: Request) -> tuple[list[Ticket] | None, list[Tensor]]:
        """A batch's tickets and further rows, unless what comes before it may change them."""
        if self._draw is None:
            return None, []
        waiting = [torch.from_numpy(each.request.rows) for each in self._queue]
        met = torch.cat(waiting) if waiting else torch.empty(0, dtype=torch.int64)
        found = self._draw(request.step, torch.from_numpy(request.rows).to(self._device), met.to(self._device))
        return (None, []) if found is None else found

    def _start(self) -> DataLoader[Any]:
        return DataLoader(
            self._reader,
            batch_size=None,
            sampler=Again(self._requests),
            collate_fn=as_it_is,
            num_workers=self._workers,
            prefetch_factor=PREFETCH,
            persistent_workers=True,
            multiprocessing_context="spawn",
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # of seeds that nothing here draws from
        )

    def _answer(self, loader: DataLoader[Any]) -> Any:
        """The inputs of the first request of the queue, which is begun anew where an epoch or a rewind ended it."""
        try:
            while True:
                if self._answers is None:
                    self._answers = iter(loader)
                try:
                    return next(self._answers)
                except StopIteration:
                    self._answers = None
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            if self._answers is not None:
                raise
            raise ValueError(
                f"data.workers={self._workers}: the data cannot be sent to another process ({error}); define its "
                f"functions at the top of a module, or take data.workers=0"
            ) from error
        except (RuntimeError, ConnectionError, EOFError) as error:
            said = str(error).partition("\n")[0] or type(error).__name__
            lost = not isinstance(error, RuntimeError) or "DataLoader worker" in said
            if not lost or said.startswith("Caught"):  # an error of the data, raised in a worker
                raise
            raise RuntimeError(
                f"data.workers={self._workers}: a worker died ({said}); it may have run out of memory, or of "
                f"/dev/shm: lower data.workers. A script of your own starts runs under `if __name__ == '__main__':`"
            ) from error


class Reader(Dataset[Any]):
    """What workers do: inputs of every tower for a request.

    Args:
        data: of each tower.
        piece: inputs of a piece at most.
    """

    def __init__(self, data: Sequence[Data], piece: int | None) -> None:
        self.data, self.piece = list(data), piece
        self.turn = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getitem__(self, request: Request) -> Any:
        """The inputs of a request; None where nobody waits for them any more, or the data's ValueError."""
        if request.turn != int(self.turn):
            return None
        try:
            return self.inputs(request)
        except ValueError as error:  # one line of the data, such as a file's name: raised by the step that asked
            return Failure(str(error), traceback.format_exc())

    def inputs(self, request: Request) -> tuple[list[list[Any]], list[list[Any]]]:
        """The views of each tower, in pieces, and one view of its further rows."""
        rows = torch.from_numpy(request.rows)
        views = [(rows.repeat(len(seeds) // len(rows)), torch.from_numpy(seeds)) for seeds in request.seeds]
        further = [tuple(map(torch.from_numpy, each)) for each in request.further]
        return (
            [self.pieces(tower, *each) for tower, each in enumerate(views)],
            [self.pieces(tower, *each) if len(each[0]) else [] for tower, each in enumerate(further)],
        )

    def pieces(self, tower: int, rows: Tensor, seeds: Tensor) -> list[Any]:
        """One view of each of rows (n,), in pieces."""
        size = max(1, len(rows)) if self.piece is None else self.piece
        return [self.data[tower].read(*part) for part in zip(rows.split(size), seeds.split(size))]


class Again:
    """An iterable that begins anew by calling a function."""

    def __init__(self, begin: Callable[[], Iterator[Request]]) -> None:
        self._begin = begin

    def __iter__(self) -> Iterator[Request]:
        return self._begin()


def as_it_is(inputs: Any) -> Any:
    """What the data collated is left alone."""
    return inputs
