"""Colour jitter of a batch with its own factors, and order of steps, for every image.

Brightness, contrast and saturation all blend the image x with a reference r and clamp,

    x <- clamp(f x + (1 - f) r, 0, 1),   r = 0, mean luma, luma

Hue turns the HSV angle H and keeps V = max and the chroma c = max - min. In sixths of a turn from red, -3 <= H <= 3,

    |H| = 1 + (g + b - r - min) / c,  sign H = sign(g - b),   channel = V - c clamp(||H - o| - 3| - 1, 0, 1)

with o = 3, -1, 1 opposite red, green and blue; 3 - ||H - o| - 3| is the distance from H to o on the circle of six.
Results agree with ``torchvision.transforms.v2.functional`` on float images up to rounding. Loops are compiled and go
from image to image, each of which so stays in a core's cache through its steps, and is the same bits in any batch.
"""

from typing import Any

import numba
import numpy as np
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of ``factors`` and values of ``order``
_RED, _GREEN, _BLUE = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # ITU-R 601, as torchvision rounds them
_0, _1, _3, _6, _TINY = (np.float32(value) for value in (0, 1, 3, 6, np.finfo(np.float32).tiny))


def luma(images: Tensor) -> Tensor:
    """(B, 1, H, W) ITU-R 601 grey values of (B, 3, H, W), with torchvision's weights; of (B, 1, H, W) itself."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return (red * float(_RED)).add_(green * float(_GREEN)).add_(blue * float(_BLUE))


def jitter_(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Apply the steps of every image in its own order, in place.

    Args:
        images: contiguous float32 (B, C, H, W) in 0..1 on the CPU, C of 1 or 3.
        order: int64 (B, K): the steps of each image, of BRIGHTNESS, CONTRAST and, where C is 3, SATURATION and HUE.
        factors: float32 (B, 4): three blend factors f >= 0, where 1 changes nothing, and the hue shift in turns.

    Returns:
        ``images``.
    """
    if order.shape[1]:
        _jitter(images.flatten(2).numpy(), order.contiguous().numpy(), factors.contiguous().numpy())
    return images


@numba.njit(cache=True, nogil=True)
def _jitter(images: np.ndarray, order: np.ndarray, factors: np.ndarray) -> None:
    for i in range(len(images)):
        for step in order[i]:
            f = factors[i, step]
            if step == HUE:
                if f != _0:
                    _turn(images[i, 0], images[i, 1], images[i, 2], f * _6)
            elif f != _1:
                _blend(images[i], step, f)


@numba.njit(cache=True, nogil=True)
def _blend(x: np.ndarray, step: int, f: float) -> None:
    """One of the first three steps of pixels (C, n)."""
    rest = _1 - f
    if step == SATURATION:
        for p in range(x.shape[1]):
            grey = rest * _luma(x, p)
            for c in range(3):
                x[c, p] = _clamped(f * x[c, p] + grey)
        return
    mean = 0.0
    if step == CONTRAST:
        for p in range(x.shape[1]):
            mean += _luma(x, p) if len(x) == 3 else x[0, p]
    flat, grey = x.reshape(-1), rest * np.float32(mean / x.shape[1])
    for p in range(len(flat)):
        flat[p] = _clamped(f * flat[p] + grey)


@numba.njit(cache=True, nogil=True)
def _turn(red: np.ndarray, green: np.ndarray, blue: np.ndarray, sixths: float) -> None:
    """Turn the hue of pixels (n,) by an angle of at most half a turn."""
    for p in range(len(red)):
        r, g, b = red[p], green[p], blue[p]
        lowest, highest = min(min(r, g), b), max(max(r, g), b)
        chroma = highest - lowest
        hue = _1 + (g + b - r - lowest) / max(chroma, _TINY)
        hue = (hue if g >= b else -hue) + sixths
        hue = hue - _6 if hue > _3 else hue
        hue = hue + _6 if hue < -_3 else hue
        red[p] = highest - chroma * _clamped(abs(abs(hue - _3) - _3) - _1)
        green[p] = highest - chroma * _clamped(abs(abs(hue + _1) - _3) - _1)
        blue[p] = highest - chroma * _clamped(abs(abs(hue - _1) - _3) - _1)


@numba.njit(cache=True, nogil=True, inline="always")
def _luma(x: np.ndarray, p: int) -> float:
    return _RED * x[0, p] + _GREEN * x[1, p] + _BLUE * x[2, p]


@numba.njit(cache=True, nogil=True, inline="always")
def _clamped(value: Any) -> Any:
    return min(max(value, _0), _1)
