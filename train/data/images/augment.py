"""Random views of a batch of images, every image with its own parameters (SimCLR; Chen et al. 2020, arXiv:2002.05709).

A view is crop, mirror and rotation as one resampling (:mod:`.crop`), colour jitter (:mod:`.colour`), greyscale, blur
(:mod:`.blur`) and normalisation (x - mean) / std, in that order (appendix A there). ``Augment.draw`` turns the uniforms
of an image's seed into parameters and ``Augment.apply`` is a deterministic function of images and parameters.

The view of an image depends on the image and its seed alone, bit for bit, whatever is in the batch and however many
threads there are. Loops over a batch use vector instructions and, for what is left over, scalar ones, which may round
otherwise: ``lerp``, ``addcmul`` and ``add(alpha=)`` (one rounding or two), ``pow``, ``exp`` and ``cos`` (two
implementations), ``mean`` (order of the sum). None of these touches a pixel here. What does, is one correctly rounded
operation after another, or a compiled loop that takes images one by one (:mod:`.crop`, :mod:`.colour`).
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from negbank.bounds import Annotated, Count, Ge, Le, Share, checked
from negbank.counter import seeded_uniforms
from negbank.train.data.images.blur import gaussian_blur, kernel_size
from negbank.train.data.images.colour import HUE, SATURATION, jitter_, luma
from negbank.train.data.images.crop import BOX_UNIFORMS, random_boxes, resample

UNIFORMS = BOX_UNIFORMS + 14
"""Of a view."""

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
    # ImageNet: those of MoCo v2 (Chen et al. 2020, arXiv:2003.04297).
    "natural": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
}
DEFAULTS: dict[str, Any] = {
    "scale": (0.2, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "rotate": 0.0,
    "jitter": (0.4, 0.4, 0.4, 0.1),
    "jitter_prob": 0.8,
    "grey": 0.2,
    "blur": 0.5,
    "blur_sigma": (0.1, 2.0),
}
"""What presets do not say otherwise."""


class Draw(NamedTuple):
    """Parameters of one view of each of B images; a step whose parameters change nothing is the identity.

    Attributes:
        boxes: float (B, 4) crop: left, top, width, height in pixels.
        mirrored: bool (B,).
        degrees: float (B,) counter-clockwise rotation, before the mirror.
        order: int64 (B, K) order of the colour steps (see :mod:`.colour`); K of 0: none.
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
        channels: of the images, 1 or 3.
        size: side of the views in pixels.
        preset: two-view augmentation; auto: digits for grey images, small_images up to 96 pixels, else natural.
        scale: area of a crop as a share of the image, [min, max]; None, here and below: the preset's.
        ratio: width / height of a crop, [min, max].
        flip: probability of a horizontal flip.
        rotate: largest rotation in degrees, either way.
        jitter: strength of [brightness, contrast, saturation, hue]: factors in 1 ± strength, never below 0, and a
            shift within ± strength turns, at most 0.5.
        jitter_prob: probability of colour jitter.
        grey: probability of greyscale.
        blur: probability of Gaussian blur; its kernel is a tenth of the size.
        blur_sigma: standard deviation of the blur in pixels, [min, max].
        mean: of the normalisation in units of 0..1, one number or one a channel.
        std: likewise.

    Attributes:
        plain: the view for evaluation, normalised alike.

    Raises:
        ValueError: an argument out of its range.
    """

    @checked
    def __init__(
        self,
        *,
        channels: int,
        size: Count,
        preset: Literal["auto", "digits", "small_images", "natural"] = "auto",
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] | None = None,
        flip: Share | None = None,
        rotate: Annotated[float, Ge(0), Le(180)] | None = None,
        jitter: tuple[float, float, float, float] | None = None,
        jitter_prob: Share | None = None,
        grey: Share | None = None,
        blur: Share | None = None,
        blur_sigma: tuple[float, float] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
    ) -> None:
        if preset == "auto":
            preset = "digits" if channels == 1 else "small_images" if size <= 96 else "natural"
        chosen = {**DEFAULTS, **PRESETS[preset]}
        self.scale: tuple[float, float] = _range("scale", scale, chosen, top=1.0)
        self.ratio = _range("ratio", ratio, chosen)
        self.blur_sigma = _range("blur_sigma", blur_sigma, chosen)
        self.jitter = tuple(chosen["jitter"] if jitter is None else jitter)
        if len(self.jitter) != 4 or min(self.jitter) < 0 or self.jitter[HUE] > 0.5:
            raise ValueError(f"jitter must be four strengths >= 0, the last (hue) at most 0.5, got {jitter}")
        self.flip: float = chosen["flip"] if flip is None else flip
        self.rotate: float = chosen["rotate"] if rotate is None else rotate
        self.jitter_prob: float = chosen["jitter_prob"] if jitter_prob is None else jitter_prob
        self.grey: float = chosen["grey"] if grey is None else grey
        self.blur: float = chosen["blur"] if blur is None else blur
        self.plain = Plain(
            size=size,
            mean=_per_channel(chosen["mean"], channels) if mean is None else mean,
            std=_per_channel(chosen["std"], channels) if std is None else std,
        )
        self.size = size
        self._identity = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]
        width = torch.tensor(self.jitter)[:, None]
        self._jitter_range = torch.stack((self._identity - width, self._identity + width))
        self._jitter_range[:, :HUE].clamp_(min=0)

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        """One view of every image, of which each depends on its own seed alone.

        Args:
            images: uint8 (B, C, H, W), C of 1 or 3, on the CPU.
            seeds: int64 (B,).

        Returns:
            float32 (B, C, size, size), normalised.

        Raises:
            ValueError: ``images`` of another dtype or shape, or ``mean`` and ``std`` for another number of channels.
        """
        self.plain.check(images)
        _, channels, height, width = images.shape
        return self.apply(images, self.draw(seeds, channels, height, width))

    def draw(self, seeds: Tensor, channels: int, height: int, width: int) -> Draw:
        """The parameters that ``seeds`` (B,) stand for, of images of the given shape."""
        u = seeded_uniforms(seeds, UNIFORMS).T.contiguous()
        mirror, rotate, jitter, grey, blur, sigma = u[BOX_UNIFORMS : BOX_UNIFORMS + 6]
        ranks, strengths = u[BOX_UNIFORMS + 6 : BOX_UNIFORMS + 10], u[BOX_UNIFORMS + 10 :]

        steps = [step for step in range(4 if channels == 3 else SATURATION) if self.jitter[step] > 0]
        order = torch.tensor(steps if self.jitter_prob > 0 else [], dtype=torch.int64)
        order = order[ranks[: len(order)].argsort(dim=0, stable=True)].T
        low, high = self._jitter_range
        factors = torch.where(jitter < self.jitter_prob, (high - low) * strengths + low, self._identity)
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
        views = resample(images, draw.boxes, draw.mirrored, draw.degrees, self.size)
        jitter_(views, draw.order, draw.factors)
        rows = draw.grey.nonzero().squeeze(1)
        if len(rows):
            views.index_copy_(0, rows, luma(views.index_select(0, rows)).expand(-1, views.shape[1], -1, -1))
        rows = draw.sigma.nonzero().squeeze(1)
        if len(rows):
            blurred = gaussian_blur(views.index_select(0, rows), draw.sigma[rows], kernel_size(self.size))
            views.index_copy_(0, rows, blurred)
        return self.plain.normalise_(views)


def _range(name: str, given: tuple[float, float] | None, preset: dict[str, Any], top: float = float("inf")) -> Any:
    pair = tuple(preset[name] if given is None else given)
    if len(pair) != 2 or not 0.0 < pair[0] <= pair[1] <= top:
        bound = "" if top == float("inf") else f" <= {top}"
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high{bound}, got {given}")
    return pair


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """A preset's numbers, their mean where it is one for colour on grey images, or the other way round."""
    return values if len(values) == channels else (sum(values) / len(values),) * channels


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
                "pass pixels in 0..255"
            )
        if len(self._mean) not in (1, images.shape[1]):
            raise ValueError(
                f"mean and std have {len(self._mean)} values but images have {images.shape[1]} channel(s); "
                "give one value, or one per channel"
            )

    def normalise_(self, views: Tensor) -> Tensor:
        """(views - mean) / std, in place, for float (B, C, H, W) in 0..1."""
        return views.sub_(self._mean.to(views.device)).div_(self._std.to(views.device))
