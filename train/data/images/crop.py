"""Random resized crop, mirror and rotation of a batch as one resampling.

Output pixel centres u in (-1, 1)^2 are sent to input pixels by

    p = c + R(angle) diag(m w / 2, h / 2) u

with c, w, h the centre and sides of the sampled box, m = -1 for a mirrored image and R a rotation. Values are
interpolated bilinearly, without antialiasing, from the whole image: the outermost half pixel of a crop sees its
neighbours outside the box. Beyond the image they are those of its border, so that the crop of all of it equals its
resize, and a rotation leaves no black corners that would tell its angle. Places are computed in float64. Loops are
compiled and go from image to image, each of which is the same bits in any batch.
"""

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

TRIES = 10  # of torchvision's RandomResizedCrop
BOX_UNIFORMS = 2 * TRIES + 2


def random_boxes(
    uniforms: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Boxes distributed as those of torchvision's ``RandomResizedCrop`` (Szegedy et al. 2015, arXiv:1409.4842, sec. 6).

    The area is uniform in ``scale`` (share of the image), the logarithm of width / height uniform in that of
    ``ratio``, sides are rounded to pixels, and the first of ten tries that fits is placed uniformly; if none fits, the
    largest central box with the nearest allowed ratio is taken.

    Args:
        uniforms: float32 (BOX_UNIFORMS, B) independent uniforms in [0, 1).
        height, width: of the images in pixels.
        scale, ratio: (low, high).

    Returns:
        float32 (B, 4): left, top, width, height in whole pixels.
    """
    boxes = np.empty((uniforms.shape[1], 4), np.float32)
    small, large, narrow, wide = (float(bound) for bound in (*scale, *ratio))
    _boxes(uniforms.contiguous().numpy(), float(height), float(width), small, large, narrow, wide, boxes)
    return torch.from_numpy(boxes)


@numba.njit(cache=True, nogil=True)
def _boxes(
    uniforms: np.ndarray, height: float, width: float, small: float, large: float, narrow: float, wide: float,
    boxes: np.ndarray,
) -> None:  # fmt: skip
    for i in range(len(boxes)):
        u = uniforms[:, i].astype(np.float64)
        w, h = min(width, np.rint(height * wide)), min(height, np.rint(width / narrow))
        left, top = (width - w) // 2, (height - h) // 2
        for t in range(TRIES):
            side = math.sqrt((u[t] * (large - small) + small) * height * width)
            root = math.sqrt(narrow) * math.pow(math.sqrt(wide / narrow), u[TRIES + t])
            across, down = np.rint(side * root), np.rint(side / root)
            if 0 < across <= width and 0 < down <= height:
                w, h = across, down
                left, top = math.floor(u[-2] * (width - w + 1)), math.floor(u[-1] * (height - h + 1))
                break
        boxes[i] = left, top, w, h


def resample(images: Tensor, boxes: Tensor, mirrored: Tensor, degrees: Tensor, size: int) -> Tensor:
    """Crop, resize, mirror and rotate every image by its own parameters.

    Args:
        images: (B, C, H, W), float32, or uint8 as 255ths.
        boxes: float (B, 4) left, top, width, height in pixels.
        mirrored: bool (B,).
        degrees: float (B,), of the content, counter-clockwise about the centre of the box, before the mirror.
        size: side of the output in pixels.

    Returns:
        float32 (B, C, size, size).
    """
    out = torch.empty(*images.shape[:2], size, size)
    unit: Any = np.float32(1 / 255 if images.dtype == torch.uint8 else 1)
    _resample(images.contiguous().numpy(), boxes.numpy(), mirrored.numpy(), degrees.numpy(), unit, out.numpy())
    return out


@numba.njit(cache=True, nogil=True)
def _resample(
    images: np.ndarray, boxes: np.ndarray, mirrored: np.ndarray, degrees: np.ndarray, unit: float, out: np.ndarray
) -> None:
    count, channels, height, width = images.shape
    size = out.shape[3]
    places, parts = np.empty((3, size * size), np.uint32), np.empty((2, size * size), np.float32)
    at, right, below, dx, dy = places[0], places[1], places[2], parts[0], parts[1]
    for i in range(count):
        left, top, w, h = boxes[i].astype(np.float64)
        angle = math.radians(float(degrees[i]))
        cos, sin, half = math.cos(angle), math.sin(angle), -w / 2 if mirrored[i] else w / 2
        for row in range(size):
            v = (2 * row + 1) / size - 1
            x_row, y_row = left + w / 2 - 0.5 - h / 2 * sin * v, top + h / 2 - 0.5 + h / 2 * cos * v
            for column in range(size):
                u, p = (2 * column + 1) / size - 1, row * size + column
                x = min(max(x_row + half * cos * u, 0.0), width - 1.0)
                y = min(max(y_row + half * sin * u, 0.0), height - 1.0)
                x0, y0 = np.int32(x), np.int32(y)
                at[p] = y0 * width + x0
                right[p] = 1 if x0 + 1 < width else 0
                below[p] = width if y0 + 1 < height else 0
                dx[p], dy[p] = x - x0, y - y0
        for c in range(channels):
            pixels, view = images[i, c].reshape(-1), out[i, c].reshape(-1)
            for p in range(size * size):
                a, b = np.float32(pixels[at[p]]), np.float32(pixels[at[p] + right[p]])
                d, e = np.float32(pixels[at[p] + below[p]]), np.float32(pixels[at[p] + below[p] + right[p]])
                upper, lower = a + dx[p] * (b - a), d + dx[p] * (e - d)
                view[p] = unit * (upper + dy[p] * (lower - upper))
