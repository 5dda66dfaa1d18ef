"""Row-addressed uint8 images: decoded in memory, or decoded from files on demand.

Rows are the identity of a sample throughout training: row ``i`` of a store is always the same image. Labels are only
for evaluation; -1 marks a row without one.
"""

from collections.abc import Sequence
from functools import partial
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from negbank.train.data.contract import checked_labels
from negbank.train.data.images.files import Files

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "La", "RGBa")

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation → what makes the image upright; 1 and what is no orientation: nothing."""


class Images(Protocol):
    """A fixed sequence of N images of one shape, read by row."""

    def __len__(self) -> int: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), -1 where unknown, or None. Never used in training."""
        ...

    def read(self, rows: Tensor) -> Tensor:
        """uint8 (B, C, H, W) images of the int64 ``rows`` (B,)."""
        ...


class ImageArray:
    """Images decoded in memory.

    Args:
        images: uint8 (N, C, H, W) with C of 1 or 3, on any device.
        labels: integers (N,), or None.

    Raises:
        ValueError: wrong dtype, shape or number of channels, or lengths that differ.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8, got {images.dtype}; scale to 0..255 and call images.to(torch.uint8)"
            )
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be (N, C, H, W) with C of 1 or 3, got shape {tuple(images.shape)}; permute it"
            )
        self.images = images
        self._labels = checked_labels(labels, len(images))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), -1 where unknown, or None. Never used in training."""
        return self._labels

    def read(self, rows: Tensor) -> Tensor:
        """Return uint8 (B, C, H, W) images of ``rows`` (B,) on the device of the store.

        Raises:
            IndexError: a row is negative or not below N.
        """
        return self.images.index_select(0, rows.to(self.images.device))


class ImageFiles:
    """Images decoded from files at every read, for sets that do not fit in memory.

    Args:
        files: the directory or zip archive.
        names: the file of each row.
        labels: integers (N,), or None.
        size: side in pixels of the square that every image is resized (shorter side) and centre-cropped to.
        channels: 1 (greyscale) or 3 (RGB).

    Raises:
        ValueError: labels that are not integers or not one per file, or channels other than 1 and 3.
    """

    def __init__(
        self, files: Files, names: Sequence[str], labels: Tensor | None = None, *, size: int, channels: int = 3
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        self._files = files
        self._names = list(names)
        self._labels = checked_labels(labels, len(self._names))
        self._size = size
        self._channels = channels

    def __len__(self) -> int:
        return len(self._names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self._channels, self._size, self._size

    @property
    def labels(self) -> Tensor | None:
        """int64 (N,), -1 where unknown, or None. Never used in training."""
        return self._labels

    def read(self, rows: Tensor) -> Tensor:
        """Return uint8 (B, C, H, W) images of ``rows`` (B,) on the CPU.

        Raises:
            IndexError: a row is negative or not below N.
            ValueError: a file can no longer be decoded; names the file.
        """
        wanted = rows.tolist()
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise IndexError(f"rows must lie in 0..{len(self) - 1}, got {min(wanted)}..{max(wanted)}")
        decoded = self._files.map(
            partial(decode, size=self._size, channels=self._channels), [self._names[row] for row in wanted]
        )
        return torch.stack(decoded) if decoded else torch.empty(0, *self.shape, dtype=torch.uint8)


def decode(file: BinaryIO, *, size: int, channels: int) -> Tensor:
    """Decode one encoded image to uint8 (channels, size, size): its central square, resized (antialiased bilinear).

    It is turned as its EXIF orientation says, as viewers show it, and what is transparent is seen on white. JPEGs much
    larger than ``size`` are decoded at a reduced scale that is still at least ``size``.

    Raises:
        ValueError: pixels of more than 8 bits, which a conversion would clip.
        OSError: not an image, or truncated.
    """
    with Image.open(file) as opened:
        check_mode(opened.mode)
        opened.draft(None, (size, size))
        image = on_white(upright(opened)).convert("L" if channels == 1 else "RGB")
    width, height = image.size
    side = min(width, height)
    if (width, height) != (size, size):
        left, top = (width - side) / 2, (height - side) / 2
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1)


def upright(image: Image.Image) -> Image.Image:
    """An image turned as its EXIF orientation says (Exif 2.3, tag 0x0112)."""
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def on_white(image: Image.Image) -> Image.Image:
    """What is transparent in an image, by an alpha channel, a palette or a colour that stands for it, over white."""
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)


def check_mode(mode: str) -> None:
    """Raise ValueError unless the PIL ``mode`` has 8 bits a channel or fewer."""
    if mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"mode={mode!r} has more than 8 bits a channel; convert the image to 8 bits")
