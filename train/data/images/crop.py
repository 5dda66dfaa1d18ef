"""Random resized crop, mirror and rotation of a batch as one resampling.

Output pixel centres u in (-1, 1)^2 are sent to input pixels by

    p = c + R(angle) diag(m w / 2, h / 2) u

with c, w, h the centre and sides of the sampled box, m = -1 for a mirrored image and R a rotation; in the normalised
coordinates of ``grid_sample`` (``align_corners=False``) that is one 2x3 matrix per image. Values are interpolated
bilinearly, without antialiasing, from the whole image: the outermost half pixel of a crop sees its neighbours outside
the box. Beyond the image they are those of its border, so that the crop of all of it equals its resize, and a rotation
leaves no black corners that would tell its angle. Parameters are computed in float64 and rounded.
"""

import numpy as np
import torch
import torch.nn.functional as F
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
        uniforms: (BOX_UNIFORMS, B) independent uniforms in [0, 1).
        height, width: of the images in pixels.
        scale, ratio: (low, high).

    Returns:
        float32 (B, 4): left, top, width, height in whole pixels.
    """
    u = uniforms.double().numpy()
    side = np.sqrt((u[:TRIES] * (scale[1] - scale[0]) + scale[0]) * (height * width))
    root = np.sqrt(ratio[0]) * np.power(np.sqrt(ratio[1] / ratio[0]), u[TRIES : 2 * TRIES])
    widths, heights = (torch.from_numpy(np.round(sides)).float() for sides in (side * root, side / root))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.logical_not().cumprod(0).sum(0)  # TRIES where none fits
    index, found = first.clamp(max=TRIES - 1).unsqueeze(0), first < TRIES
    w = torch.where(found, widths.gather(0, index)[0], min(width, round(height * ratio[1])))
    h = torch.where(found, heights.gather(0, index)[0], min(height, round(width / ratio[0])))
    left = torch.where(found, (uniforms[-2] * (width - w + 1)).floor_(), (width - w) // 2)
    top = torch.where(found, (uniforms[-1] * (height - h + 1)).floor_(), (height - h) // 2)
    return torch.stack((left, top, w, h), 1)


def resample(images: Tensor, boxes: Tensor, mirrored: Tensor, degrees: Tensor, size: int) -> Tensor:
    """Crop, resize, mirror and rotate every image by its own parameters.

    Args:
        images: float (B, C, H, W).
        boxes: float (B, 4) left, top, width, height in pixels.
        mirrored: bool (B,).
        degrees: float (B,), of the content, counter-clockwise about the centre of the box, before the mirror.
        size: side of the output in pixels.

    Returns:
        (B, C, size, size) of the dtype of ``images``.
    """
    height, width = images.shape[-2:]
    left, top, w, h = boxes.unbind(1)
    angle = np.deg2rad(degrees.double().cpu().numpy())
    cos, sin = (torch.from_numpy(each).to(boxes) for each in (np.cos(angle), np.sin(angle)))
    w_signed = torch.where(mirrored, -w, w)
    along_x = torch.stack((cos * w_signed / width, sin * w_signed / height), 1)
    along_y = torch.stack((-sin * h / width, cos * h / height), 1)
    centre = torch.stack(((2 * left + w) / width - 1, (2 * top + h) / height - 1), 1)
    along_x, along_y, centre = (column.to(images.device)[:, :, None] for column in (along_x, along_y, centre))
    u = (torch.arange(size, device=images.device, dtype=images.dtype) * 2 + 1) / size - 1
    # As affine_grid, which takes a matrix product of all points instead of this sum of a row and a column.
    grid = ((along_x * u)[:, :, None, :] + (along_y * u + centre)[:, :, :, None]).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
