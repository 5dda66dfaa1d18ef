"""Colour jitter of a batch with its own factors, and order of steps, for every image.

Brightness, contrast and saturation all blend the image x with a reference r and clamp,

    x <- clamp(f x + (1 - f) r, 0, 1),   r = 0, mean luma, luma,

so one pass serves a batch whose images are each at a different one of these steps. Hue turns the HSV angle H and keeps
V = max and the chroma c = max - min. In sixths of a turn from red, -3 <= H <= 3,

    |H| = 1 + (g + b - r - min) / c,  sign H = sign(g - b),   channel = V - c clamp(||H - o| - 3| - 1, 0, 1)

with o = 3, -1, 1 opposite red, green and blue; 3 - ||H - o| - 3| is the distance from H to o on the circle of six.
Results agree with ``torchvision.transforms.v2.functional`` on float images up to rounding. Which rounding does not
depend on the batch (see :mod:`.augment`): pixels meet single operations alone, and means are sums by halves.
"""

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of ``factors`` and values of ``order``
_OPPOSITE = (3.0, -1.0, 1.0)  # the hues opposite red, green and blue, in sixths of a turn


def luma(images: Tensor) -> Tensor:
    """(B, 1, H, W) ITU-R 601 grey values of (B, 3, H, W), with torchvision's weights; of (B, 1, H, W) itself."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, 1)
    return (red * 0.2989).add_(green * 0.587).add_(blue * 0.114)


def mean(images: Tensor) -> Tensor:
    """(B, 1, 1, 1) means of (B, 1, H, W), summed by halves: the order of a reduction depends on batch and threads."""
    left = images.flatten(2)
    while (n := left.shape[2]) > 1:
        half, odd = left[..., : n // 2] + left[..., n // 2 : n // 2 * 2], left[..., n // 2 * 2 :]
        if odd.shape[2]:
            half[..., :1] += odd
        left = half
    return left[..., None] / (images.shape[2] * images.shape[3])


def jitter_(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Apply the steps of every image in its own order, in place.

    Args:
        images: float (B, C, H, W) in 0..1, C of 1 or 3.
        order: int64 (B, K): the steps of each image, of BRIGHTNESS, CONTRAST and, where C is 3, SATURATION and HUE.
        factors: float (B, 4): three blend factors f >= 0, where 1 changes nothing, and the hue shift in turns.

    Returns:
        ``images``.
    """
    device = images.device
    blends = torch.cat((factors[:, :HUE], torch.ones_like(factors[:, HUE:])), 1)
    for step in order.unbind(1):
        blend = blends.gather(1, step[:, None])
        on_mean, on_luma = ((1 - blend) * (step == which)[:, None] for which in (CONTRAST, SATURATION))
        blend, on_mean, on_luma = (column.to(device)[:, :, None, None] for column in (blend, on_mean, on_luma))
        grey = luma(images)
        reference = (grey * on_luma).add_(mean(grey) * on_mean)
        images.mul_(blend).add_(reference).clamp_(0, 1)
        rows = ((step == HUE) & (factors[:, HUE] != 0)).nonzero().squeeze(1)
        if len(rows):
            shift = factors[rows, HUE].to(device)
            rows = rows.to(device)
            images.index_copy_(0, rows, shift_hue(images.index_select(0, rows), shift))
    return images


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of float (B, 3, H, W) images in 0..1 by ``shift`` (B,) turns."""
    red, green, blue = images.unbind(1)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    highest = torch.maximum(torch.maximum(red, green), blue)
    chroma = highest - lowest
    hue = (green + blue).sub_(red).sub_(lowest).div_(chroma.clamp_min(torch.finfo(images.dtype).tiny)).add_(1)
    hue.copysign_(green - blue).add_(shift[:, None, None] * 6)
    hue.sub_(hue.div(6).round_().mul_(6))
    opposite = torch.tensor(_OPPOSITE, device=images.device, dtype=images.dtype)[:, None, None]
    fall = (hue[:, None] - opposite).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
    return torch.sub(highest[:, None], fall.mul_(chroma[:, None]))
