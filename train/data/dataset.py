"""Any map-style `torch.utils.data.Dataset` as data, its random transforms included.

    with the global generators seeded by the input's seed:  dataset[row] → its first element → view

Transforms draw from global generators: torch's on the CPU, Python's `random` and numpy's old one. They are seeded for
each item and put back afterwards, so that a view depends on row and seed alone. What this cannot hold: generators of
the data set's own (`numpy.random.default_rng`, a `torch.Generator`), items that count or cache, other threads that draw
meanwhile, and transforms on a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from negbank.counter import Counter
from negbank.train.data.contract import checked_labels
from negbank.train.data.tensors import described

PLAIN = Counter.of(0).at("plain")
"""Seeds of what is random in a data set when it is read for evaluation: one a row."""


class FromDataset:
    """The items of a data set, stacked by `default_collate`.

    Args:
        dataset: with `__len__` and `__getitem__`; of a tuple or list the first element counts. To be read ahead in
            workers it has to be picklable, so its functions at the top of a module.
        labels: integers (N,), or "items" to read them now as every item's second element.
        view: item → random view, left out where evaluation reads; for data sets without random transforms.

    Raises:
        ValueError: for labels that do not fit.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        labels: Tensor | Literal["items"] | None = None,
        view: Callable[[Any], Any] | None = None,
    ) -> None:
        self.dataset, self.view, self._count = dataset, view, len(dataset)  # type: ignore[arg-type]
        if isinstance(labels, str):
            with kept():
                labels = torch.tensor([int(dataset[row][1]) for row in range(self._count)])
        self._labels = checked_labels(labels, self._count)

    def __len__(self) -> int:
        return self._count

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), or None."""
        return self._labels

    @property
    def describes(self) -> dict[str, Any]:
        """The shape of the first item."""
        return described(tuple(self.read(torch.tensor([0]), None).shape[1:]))

    def read(self, rows: Tensor, seeds: Tensor | None) -> Any:
        """Views of rows (n,), stacked.

        Raises:
            TypeError: for items that do not make something with `.to`, as tensors do.
        """
        if len(rows) == 0:
            return self.read(torch.tensor([0]), None)[:0]
        view = None if seeds is None else self.view
        with kept():
            items = [
                self._item(row, seed, view)
                for row, seed in zip(rows.tolist(), (PLAIN.seeds(rows) if seeds is None else seeds).tolist())
            ]
        inputs = default_collate(items)
        if not hasattr(inputs, "to"):
            raise TypeError(
                f"dataset: items of type {type(items[0]).__name__} make a {type(inputs).__name__} without "
                f"`.to(device)`; have view= or the data set make tensors, or write a `read` of your own"
            )
        return inputs

    def _item(self, row: int, seed: int, view: Callable[[Any], Any] | None) -> Any:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        item = self.dataset[row]
        item = item[0] if isinstance(item, tuple | list) else item
        return item if view is None else view(item)


@contextmanager
def kept() -> Iterator[None]:
    """The global generators of the CPU are afterwards as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
