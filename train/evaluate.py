"""How good the encoder is: what a run measures of it, during training and at the end.

Labels are read here and nowhere else. What was optimised (global loss, view retrieval) stands beside what is wanted
(kNN and linear probe of frozen features), for the two do not always agree; mean cosine and uniformity tell a collapse.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from negbank.train.data.images import Images, Splits
from negbank.train.inference import Inference
from negbank.train.measures import (
    alignment,
    global_loss,
    knn_accuracy,
    linear_probe_accuracy,
    mean_cosine,
    uniformity,
    view_retrieval,
)
from torch import Tensor

VIEW_SEED = 20_240_415
"""Of the two fixed views of every row, the same for all runs."""
RETRIEVED = (1, 5)
"""The k of view retrieval."""
PIXELS = 32
"""Side that images are shrunk to, at most, for the kNN of raw pixels."""


class Evaluator:
    """Measures an encoder on fixed rows and fixed views.

    Args:
        inference: gives embeddings and features.
        splits: training and held-out images; without labels kNN and linear probe are left out.
        augment: uint8 images → one random view, with `generator=`; gives the two fixed views.
        temperature: τ of the global loss.
        knn_k: neighbours of the kNN.
        max_rows: training rows of kNN and probe, a fixed random subset.
        global_rows: training rows of the global loss and of view retrieval, likewise.
    """

    def __init__(
        self,
        inference: Inference,
        splits: Splits,
        augment: Callable[..., Tensor],
        *,
        temperature: float,
        knn_k: int = 20,
        max_rows: int = 50_000,
        global_rows: int = 10_000,
    ) -> None:
        self._inference, self._splits, self._augment = inference, splits, augment
        self._temperature, self._k = temperature, knn_k
        order = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(VIEW_SEED))
        self._global_rows = order[:global_rows].sort().values
        if len(self._global_rows) <= max(RETRIEVED):
            raise ValueError(f"eval.global_rows={global_rows}: {len(self._global_rows)} rows are too few; use more")
        self._rows = order[_labels(splits.train)[order] >= 0][:max_rows].sort().values
        self._test_rows = (_labels(splits.test) >= 0).nonzero().flatten()
        self._labelled = len(self._rows) > 0 and len(self._test_rows) > 0
        if self._labelled and knn_k > len(self._rows):
            raise ValueError(f"eval.knn_k={knn_k}: there are {len(self._rows)} labelled training rows; lower it")

    def quick(self) -> dict[str, float]:
        """kNN accuracy and the collapse alarms: cheap enough to repeat during training."""
        embeddings = self._inference.embeddings(self._splits.train, self._global_rows)
        result = {"mean_cosine": mean_cosine(embeddings), "uniformity": uniformity(embeddings)}
        if self._labelled:
            result["knn_accuracy"] = self._knn(*self._features())
        return result

    def full(self) -> dict[str, float]:
        """Everything, the linear probe included."""
        first, second = self._views()
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
            result["linear_probe_accuracy"] = linear_probe_accuracy(train, *self._labels(train, test))
        return result

    def pixels(self) -> dict[str, float]:
        """kNN accuracy of the raw pixels, the bar that an encoder has to clear."""
        if not self._labelled:
            return {}
        train, test = _pixels(self._splits.train, self._rows), _pixels(self._splits.test, self._test_rows)
        return {"pixel_knn_accuracy": self._knn(train, test)}

    def _views(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(VIEW_SEED)
        view = functools.partial(self._augment, generator=generator)
        embedder, images = self._inference.embedder, self._splits.train
        first = self._inference.run(embedder, images, self._global_rows, view)
        return first, self._inference.run(embedder, images, self._global_rows, view)

    def _features(self) -> tuple[Tensor, Tensor]:
        train = self._inference.features(self._splits.train, self._rows)
        return train, self._inference.features(self._splits.test, self._test_rows)

    def _labels(self, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Training labels, test features, test labels: what follows training features in a measure's arguments."""
        mine, theirs = _labels(self._splits.train)[self._rows], _labels(self._splits.test)[self._test_rows]
        return mine.to(train.device), test, theirs.to(test.device)

    def _knn(self, train: Tensor, test: Tensor) -> float:
        return knn_accuracy(train, *self._labels(train, test), k=self._k)


def _labels(images: Images) -> Tensor:
    """Labels (N,), −1 for a row without one."""
    return torch.full((len(images),), -1) if images.labels is None else images.labels


def _pixels(images: Images, rows: Tensor) -> Tensor:
    """Raw pixels of rows (B,) as features (B, F), of images shrunk to at most `PIXELS` a side."""
    parts = []
    for part in rows.split(500):
        pixels = images.read(part).float()
        if pixels.shape[-1] > PIXELS:
            pixels = torch.nn.functional.interpolate(pixels, (PIXELS, PIXELS), mode="area")
        parts.append(pixels.flatten(1))
    return torch.cat(parts)
