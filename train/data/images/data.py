"""Images as data: decoded, once for all views of a row, and augmented on the CPU, where workers can do both ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from negbank.train.data.contract import Splits
from negbank.train.data.images.augment import Augment
from negbank.train.data.images.store import Images

PIXELS = 32
"""Side that images are shrunk to, at most, as raw features."""


class ImageData:
    """Images under random views.

    Args:
        images: the store.
        augment: the random views, and by its `plain` the view of evaluation.
    """

    def __init__(self, images: Images, augment: Augment) -> None:
        self.images, self.augment = images, augment
        self.describes: dict[str, Any] = {"channels": images.shape[0]}

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), −1 where unknown, or None."""
        return self.images.labels

    def read(self, rows: Tensor, seeds: Tensor | None) -> Tensor:
        """Views of rows (n,): float32 (n, C, size, size), channels last.

        Raises:
            IndexError: for a row that is none.
            ValueError: for a file that cannot be decoded; names it.
        """
        distinct, at = rows.unique(return_inverse=True)
        images = self.images.read(distinct)
        views = self.augment.plain(images)[at] if seeds is None else self.augment(images[at], seeds)
        return views.contiguous(memory_format=torch.channels_last)

    def raw(self, rows: Tensor) -> Tensor:
        """Pixels of rows (n,) in 0..255, of images shrunk to at most `PIXELS` a side: float32 (n, F)."""
        pixels = self.images.read(rows).float()
        if pixels.shape[-1] > PIXELS:
            pixels = torch.nn.functional.interpolate(pixels, (PIXELS, PIXELS), mode="area")
        return pixels.flatten(1)


def image_splits(
    train: Images, test: Images | None, classes: tuple[str, ...], augment: Callable[..., Augment] | None
) -> Splits:
    """Splits of two stores, under the views that `augment` (None: `Augment`) makes of their `channels` and `size`."""
    channels, size, _ = train.shape
    views = (Augment if augment is None else augment)(channels=channels, size=size)
    return Splits(ImageData(train, views), None if test is None else ImageData(test, views), classes)
