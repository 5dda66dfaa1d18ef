"""Gaussian blur of a batch with its own sigma for every image.

The kernel has k = 2 r + 1 taps w_i proportional to exp(-i^2 / (2 sigma^2)), i = -r..r, and is applied along each axis
to the image reflected at its border, as in torchvision's ``gaussian_blur``:

    out = w_0 x_0 + sum_{i=1..r} w_i (x_{-i} + x_i)        x_i: the image shifted by i

Shifted copies weighted per image were faster on a CPU than a convolution with one group per image and channel, the more
so in blocks of images that stay in its cache.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1 << 17
"""Pixels blurred at once."""


def kernel_size(size: int) -> int:
    """Odd number of taps near a tenth of the side ``size``, at least 3 (Chen et al. 2020, arXiv:2002.05709, A)."""
    return max(3, size // 10 // 2 * 2 + 1)


def gaussian_blur(images: Tensor, sigma: Tensor, taps: int) -> Tensor:
    """Blur float (B, C, H, W) images with standard deviations ``sigma`` (B,) > 0 in pixels and odd ``taps`` an axis."""
    radius = taps // 2
    offsets = np.arange(radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma.double().cpu().numpy()[:, None]) ** 2)
    weights /= weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdims=True)
    each = torch.from_numpy(weights).to(images)[:, :, None, None, None]
    size = max(1, BLOCK // images[0].numel()) if len(images) else 1
    return torch.cat([_blurred(part, w, radius) for part, w in zip(images.split(size), each.split(size))])


def _blurred(images: Tensor, weights: Tensor, radius: int) -> Tensor:
    for axis, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        padded, length = F.pad(images, pad, mode="reflect"), images.shape[axis]
        images = padded.narrow(axis, radius, length) * weights[:, 0]
        for i in range(1, radius + 1):
            both = padded.narrow(axis, radius - i, length) + padded.narrow(axis, radius + i, length)
            images.add_(both.mul_(weights[:, i]))
    return images
