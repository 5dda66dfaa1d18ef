"""Random views of a batch of images, every image with its own parameters (SimCLR; Chen et al. 2020, arXiv:2002.05709).

A view is crop, mirror and rotation as one resampling (:mod:`.crop`), colour jitter (:mod:`.colour`), greyscale, blur
(:mod:`.blur`) and normalisation (x - mean) / std, in that order (appendix A there). ``Augment.draw`` turns uniforms
into parameters and ``Augment.apply`` is a deterministic function of images and parameters.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from negbank.train.data.blur import gaussian_blur, kernel_size
from negbank.train.data.colour import HUE, SATURATION, jitter_, luma
from negbank.train.data.crop import BOX_UNIFORMS, random_boxes, resample
from torch import Tensor

PRESETS: dict[str, dict[str, Any]] = {
    # Handwriting: a mirror or a small crop changes the class.
    "digits": {
        "scale": (0.5, 1.0),
        "flip": 0.0,
        "rotate": 10.0,
        "jitter_prob": 0.0,
        "grey": 0.0,
        "blur": 0.0,
        "mean": (0.1307,),
        "std": (0.3081,),
    },
    # CIFAR, STL-10: SimCLR without blur (its appendix B.9), at jitter strength 0.5.
    "small_images": {"blur": 0.0, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
    # ImageNet: the defaults, which are those of MoCo v2 (Chen et al. 2020, arXiv:2003.04297).
    "natural": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}


class Draw(NamedTuple):
    """Parameters of one view of each of B images; a step whose parameters change nothing is the identity.

    Attributes:
        boxes: float (B, 4) crop: left, top, width, height in pixels.
        mirrored: bool (B,).
        degrees: float (B,) counter-clockwise rotation, before the mirror.
        order: int64 (B, K) order of the colour steps (see :mod:`negbank.train.data.colour`); K of 0: none.
        factors: float (B, 4) of brightness, contrast, saturation (1 is the identity) and hue (turns, 0 is).
        grey: bool (B,).
        sigma: float (B,) of the blur in pixels; 0 is no blur.
    """

    boxes: Tensor
    mirrored: Tensor
    degrees: Tensor
    order: Tensor
    factors: Tensor
    grey: Tensor
    sigma: Tensor


class Augment:
    """Random views of uint8 images.

    Args:
        size: side of the views in pixels.
        scale: range of the crop's share of the image area.
        ratio: range of its width / height.
        flip: probability of a mirror image.
        rotate: largest rotation either way, in degrees.
        jitter: strengths of brightness, contrast, saturation (factors in 1 +- strength, never below 0) and hue (shift
            within +- strength turns, at most 0.5).
        jitter_prob: probability of colour jitter.
        grey: probability of a greyscale image.
        blur: probability of blur; its kernel is a tenth of ``size``.
        blur_sigma: range of its standard deviation in pixels.
        mean, std: of the normalisation in units of 0..1, one number or one per channel.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        *,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
        rotate: float = 0.0,
        jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1),
        jitter_prob: float = 0.8,
        grey: float = 0.2,
        blur: float = 0.5,
        blur_sigma: tuple[float, float] = (0.1, 2.0),
    ) -> None:
        for name, value in (("flip", flip), ("jitter_prob", jitter_prob), ("grey", grey), ("blur", blur)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be a probability in [0, 1], got {value}")
        for name, (low, high), top in (("scale", scale, 1.0), ("ratio", ratio, None), ("blur_sigma", blur_sigma, None)):
            if not 0.0 < low <= high or (top is not None and high > top):
                bound = "" if top is None else f" <= {top}"
                raise ValueError(f"{name} must be (low, high) with 0 < low <= high{bound}, got {(low, high)}")
        if len(jitter) != 4 or min(jitter) < 0 or jitter[HUE] > 0.5:
            raise ValueError(f"jitter must be four strengths >= 0, the last (hue) at most 0.5, got {jitter}")
        if not 0.0 <= rotate <= 180.0:
            raise ValueError(f"rotate must lie in 0..180 degrees, got {rotate}")
        self.plain = Plain(size=size, mean=mean, std=std)
        self.size, self.scale, self.ratio, self.flip, self.rotate = size, scale, ratio, flip, rotate
        self.jitter, self.jitter_prob, self.grey = jitter, jitter_prob, grey
        self.blur, self.blur_sigma = blur, blur_sigma
        self._identity = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]
        width = torch.tensor(list(jitter))[:, None]
        self._jitter_range = torch.stack((self._identity - width, self._identity + width))
        self._jitter_range[:, :HUE].clamp_(min=0)

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return one view of every image.

        Args:
            images: uint8 (B, C, H, W), C of 1 or 3, on any device.
            generator: the only source of randomness; its state advances. With a CPU generator the parameters of the
                views are the same whatever the device of the images.

        Returns:
            float32 (B, C, size, size), normalised, on the device of ``images``.

        Raises:
            ValueError: ``images`` of another dtype or shape, or ``mean`` and ``std`` for another number of channels.
        """
        self.plain.check(images)
        batch, channels, height, width = images.shape
        return self.apply(images, self.draw(batch, channels, height, width, generator=generator))

    def draw(self, batch: int, channels: int, height: int, width: int, *, generator: torch.Generator) -> Draw:
        """Draw parameters for ``batch`` images of the given shape, on the device of ``generator``."""
        u = torch.rand(BOX_UNIFORMS + 14, batch, generator=generator, device=generator.device)
        mirror, rotate, jitter, grey, blur, sigma = u[BOX_UNIFORMS : BOX_UNIFORMS + 6]
        ranks, strengths = u[BOX_UNIFORMS + 6 : BOX_UNIFORMS + 10], u[BOX_UNIFORMS + 10 :]

        steps = [step for step in range(4 if channels == 3 else SATURATION) if self.jitter[step] > 0]
        order = torch.tensor(steps if self.jitter_prob > 0 else [], dtype=torch.int64, device=u.device)
        order = order[ranks[: len(order)].argsort(0)].T
        low, high = self._jitter_range.to(u.device)
        factors = torch.where(jitter < self.jitter_prob, torch.lerp(low, high, strengths), self._identity.to(u.device))
        return Draw(
            boxes=random_boxes(u[:BOX_UNIFORMS], height, width, self.scale, self.ratio),
            mirrored=mirror < self.flip,
            degrees=rotate.mul(2).sub_(1).mul_(self.rotate),
            order=order,
            factors=factors.T,
            grey=(grey < self.grey) & (channels == 3),
            sigma=sigma.mul(self.blur_sigma[1] - self.blur_sigma[0]).add_(self.blur_sigma[0]).mul_(blur < self.blur),
        )

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Return the views of uint8 (B, C, H, W) ``images`` that ``draw`` describes, as ``__call__`` does."""
        views = images.to(torch.float32).div_(255)
        views = resample(views, draw.boxes, draw.mirrored, draw.degrees, self.size)
        views = jitter_(views, draw.order, draw.factors)
        rows = draw.grey.nonzero().squeeze(1).to(views.device)
        if len(rows):
            views.index_copy_(0, rows, luma(views.index_select(0, rows)).expand(-1, views.shape[1], -1, -1))
        rows = draw.sigma.nonzero().squeeze(1)
        if len(rows):
            sigma, rows = draw.sigma[rows], rows.to(views.device)
            views.index_copy_(0, rows, gaussian_blur(views.index_select(0, rows), sigma, kernel_size(self.size)))
        return self.plain.normalise_(views)


class Plain:
    """The view for evaluation: resize and normalise, without randomness.

    Args:
        size: side of the views in pixels; images of other sizes are resized (antialiased bilinear).
        mean, std: of the normalisation in units of 0..1, one number or one per channel.

    Raises:
        ValueError: ``size`` below 1, ``std`` not positive, or ``mean`` and ``std`` of different lengths.
    """

    def __init__(self, *, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        if size < 1:
            raise ValueError(f"size must be a positive number of pixels, got {size}")
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ValueError(f"mean and std must have equal lengths and std be positive, got mean={mean}, std={std}")
        self.size = size
        self._mean = torch.tensor(list(mean)).view(-1, 1, 1)
        self._std = torch.tensor(list(std)).view(-1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 (B, C, size, size) views of uint8 (B, C, H, W) ``images``, on their device.

        Raises:
            ValueError: ``images`` of another dtype or shape, or ``mean`` and ``std`` for another number of channels.
        """
        self.check(images)
        views = images.to(torch.float32).div_(255)
        if views.shape[-2:] != (self.size, self.size):
            views = F.interpolate(views, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return self.normalise_(views)

    def check(self, images: Tensor) -> None:
        """Raise the ValueError of ``__call__`` for unsuitable ``images``."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 (B, C, H, W) with C of 1 or 3, got {images.dtype} {tuple(images.shape)}; "
                "pass what Images.read returns"
            )
        if len(self._mean) not in (1, images.shape[1]):
            raise ValueError(
                f"mean and std have {len(self._mean)} values but images have {images.shape[1]} channel(s); "
                "give one value, or one per channel"
            )

    def normalise_(self, views: Tensor) -> Tensor:
        """(views - mean) / std, in place, for float (B, C, H, W) in 0..1."""
        return views.sub_(self._mean.to(views.device)).div_(self._std.to(views.device))
