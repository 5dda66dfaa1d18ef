"""Frozen features: kNN and linear probe where there are labels, beside what is optimised and the alarms of a collapse.

What was optimised (global loss, view retrieval) stands beside what is wanted (kNN and linear probe of frozen features),
for the two do not always agree; mean cosine and uniformity tell a collapse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from negbank.bounds import Count, Ge, checked
from negbank.counter import Counter
from negbank.train.data.contract import Data, Pairs, Splits
from negbank.train.evaluate.measures import (
    alignment,
    global_loss,
    knn_accuracy,
    linear_probe_accuracy,
    mean_cosine,
    uniformity,
    view_retrieval,
)
from negbank.train.inference import Inference

VIEW_SEED = 20_240_415
"""Of the two fixed views of every row, the same for all runs."""
RETRIEVED = (1, 5)
"""The k of view retrieval."""

LEFT_OUT = "kNN accuracy and linear probe, which compare with classes, are left out"


class Features:
    """kNN and linear probe of frozen features; view retrieval, global loss and uniformity of two fixed views.

    Args:
        inference: of the one tower, gives embeddings and features.
        splits: training and held-out rows; without labels kNN and linear probe are left out.
        temperature: τ of the global loss.
        knn_k: neighbours of the weighted kNN.
        max_rows: training rows used for kNN and the linear probe, a fixed random subset.
        global_rows: training rows of the global loss and view retrieval.

    Raises:
        ValueError: for pairs, or more neighbours than there are rows with a label.
    """

    @checked
    def __init__(
        self,
        inference: Sequence[Inference],
        splits: Splits,
        *,
        temperature: float,
        knn_k: Count = 20,
        max_rows: Annotated[int, Ge(2)] = 50_000,
        global_rows: Annotated[int, Ge(6)] = 10_000,
    ) -> None:
        if isinstance(splits.train, Pairs) or isinstance(splits.test, Pairs):
            raise ValueError("eval.type=features: measures one encoder, and pairs have two; take eval.type=retrieval")
        self._inference, self._temperature, self._k = inference[0], temperature, knn_k
        self._train, self._test = splits.train, splits.test
        order = torch.randperm(len(self._train), generator=torch.Generator().manual_seed(VIEW_SEED))
        self._global_rows = order[:global_rows].sort().values
        if len(self._global_rows) <= max(RETRIEVED):
            raise ValueError(f"eval.global_rows={global_rows}: {len(self._global_rows)} rows are too few; use more")
        self._rows = order[_labels(self._train)[order] >= 0][:max_rows].sort().values
        self._test_rows = torch.empty(0, dtype=torch.int64)
        if self._test is not None:
            self._test_rows = (_labels(self._test) >= 0).nonzero().flatten()
        self._labelled = len(self._rows) > 0 and len(self._test_rows) > 0
        which = "training" if len(self._rows) == 0 else "held-out"
        self.notes = () if self._labelled else (f"eval.type=features: no {which} row has a label: {LEFT_OUT}",)
        if self._labelled and knn_k > len(self._rows):
            raise ValueError(f"eval.knn_k={knn_k}: there are {len(self._rows)} labelled training rows; lower it")

    def baseline(self) -> dict[str, float]:
        """kNN accuracy of the raw inputs, such as pixels: the bar that an encoder has to clear."""
        raw = getattr(self._train, "raw", None)
        if not self._labelled or raw is None or self._test is None:
            return {}
        return {"pixel_knn_accuracy": self._knn(raw(self._rows), self._test.raw(self._test_rows))}  # type: ignore[attr-defined]

    def quick(self) -> dict[str, float]:
        """kNN accuracy and the collapse alarms: cheap enough to repeat during training."""
        embeddings = self._inference.embeddings(self._train, self._global_rows)
        result = {"mean_cosine": mean_cosine(embeddings), "uniformity": uniformity(embeddings)}
        if self._labelled:
            result["knn_accuracy"] = self._knn(*self._features())
        return result

    def full(self) -> dict[str, float]:
        """Everything, the linear probe included."""
        first, second = (
            self._inference.embeddings(self._train, self._global_rows, fixed_seeds(self._global_rows, view))
            for view in (0, 1)
        )
        retrieval = view_retrieval(first, second, ks=RETRIEVED)
        result = {
            "view_retrieval_at_1": retrieval[1],
            "view_retrieval_at_5": retrieval[5],
            "global_loss": global_loss(first, second, temperature=self._temperature),
            "alignment": alignment(first, second),
            "uniformity": uniformity(first),
            "mean_cosine": mean_cosine(first),
        }
        if self._labelled:
            train, test = self._features()
            result["knn_accuracy"] = self._knn(train, test)
            result["linear_probe_accuracy"] = linear_probe_accuracy(train, *self._known(train, test))
        return result

    def _features(self) -> tuple[Tensor, Tensor]:
        assert self._test is not None
        train = self._inference.features(self._train, self._rows)
        return train, self._inference.features(self._test, self._test_rows)

    def _known(self, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training labels, test features, test labels: what follows training features in a measure's arguments."""
        assert self._test is not None
        mine, theirs = _labels(self._train)[self._rows], _labels(self._test)[self._test_rows]
        return mine.to(train.device), test, theirs.to(test.device)

    def _knn(self, train: Tensor, test: Tensor) -> float:
        return knn_accuracy(train, *self._known(train, test), k=self._k)


def fixed_seeds(rows: Tensor, view: int) -> Tensor:
    """Seeds (n,) of a fixed view of rows, the same for all runs and all subsets."""
    return Counter.of(VIEW_SEED).at("view", view).seeds(rows)


def _labels(data: Data) -> Tensor:
    """Labels (N,), −1 for a row without one."""
    return torch.full((len(data),), -1) if data.labels is None else data.labels
