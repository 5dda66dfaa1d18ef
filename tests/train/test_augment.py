"""Batched augmentation against torchvision's functional operations and parameter sampling."""

import math
from typing import Any

import pytest
import torch
import torchvision.transforms.v2 as T
import torchvision.transforms.v2.functional as TF
from scipy.stats import ks_2samp
from torch import Tensor

from negbank.counter import Counter
from negbank.train.data.images.augment import PRESETS, Augment, Draw, Plain
from negbank.train.data.images.blur import gaussian_blur, kernel_size
from negbank.train.data.images.colour import BRIGHTNESS, CONTRAST, HUE, SATURATION, jitter_, luma
from negbank.train.data.images.crop import BOX_UNIFORMS, random_boxes, resample

BARE: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
NONE: dict[str, Any] = {"channels": 3, "preset": "natural", **BARE}
STEPS = {
    BRIGHTNESS: TF.adjust_brightness,
    CONTRAST: TF.adjust_contrast,
    SATURATION: TF.adjust_saturation,
    HUE: TF.adjust_hue,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seeds(count: int, seed: int = 0) -> Tensor:
    return Counter.of(seed).seeds(count)


def random_images(batch: int = 8, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    """uint8 noise; the first image has two levels, so that its channels often tie."""
    images = torch.randint(0, 256, (batch, channels, height, width), generator=generator(1), dtype=torch.uint8)
    images[0] = images[0] // 128 * 255
    return images


def identity(batch: int, size: int) -> Draw:
    return Draw(
        boxes=torch.tensor([[0.0, 0.0, size, size]]).repeat(batch, 1),
        mirrored=torch.zeros(batch, dtype=torch.bool),
        degrees=torch.zeros(batch),
        order=torch.zeros(batch, 0, dtype=torch.int64),
        factors=torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(batch, 1),
        grey=torch.zeros(batch, dtype=torch.bool),
        sigma=torch.zeros(batch),
    )


def test_identity_draw_returns_the_image() -> None:
    images = random_images()
    torch.testing.assert_close(Augment(size=32, **NONE).apply(images, identity(8, 32)), images / 255)


def test_hue_agrees_with_torchvision() -> None:
    images = random_images() / 255
    images[1] = images[1, :1]  # grey: no chroma
    shift = torch.tensor([0.5, 0.3, -0.5, -0.1, 0.0, 0.1, 0.25, -0.37])
    expected = torch.stack([TF.adjust_hue(image, float(turns)) for image, turns in zip(images, shift)])
    order, factors = torch.full((8, 1), HUE), torch.ones(8, 4)
    factors[:, HUE] = shift
    torch.testing.assert_close(jitter_(images.clone(), order, factors), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_agrees_with_torchvision_in_each_images_own_order(channels: int) -> None:
    images = random_images(channels=channels) / 255
    steps = 4 if channels == 3 else 2
    order = torch.rand(8, steps, generator=generator(2)).argsort(1)
    factors = torch.rand(8, 4, generator=generator(3)) + 0.5
    factors[:, HUE] -= 1
    expected = []
    for image, steps_, values in zip(images, order.tolist(), factors.tolist()):
        for step in steps_:
            image = STEPS[step](image, values[step])
        expected.append(image)
    torch.testing.assert_close(jitter_(images.clone(), order, factors), torch.stack(expected), atol=2e-5, rtol=0)


def test_luma_agrees_with_torchvision() -> None:
    images = random_images() / 255
    torch.testing.assert_close(luma(images), TF.rgb_to_grayscale(images))


@pytest.mark.parametrize("size", [32, 96])
def test_blur_agrees_with_torchvision(size: int) -> None:
    images = random_images(4, height=size, width=size) / 255
    sigma, taps = torch.tensor([0.1, 0.7, 1.3, 2.0]), kernel_size(size)
    expected = torch.stack([TF.gaussian_blur(image, [taps, taps], [float(s)] * 2) for image, s in zip(images, sigma)])
    torch.testing.assert_close(gaussian_blur(images, sigma, taps), expected, atol=1e-5, rtol=0)


def test_kernel_is_a_tenth_of_the_side() -> None:
    assert [kernel_size(size) for size in (16, 32, 96, 224)] == [3, 3, 9, 23]


def test_crop_agrees_with_torchvision() -> None:
    images = random_images(2, height=40, width=48) / 255
    still = (torch.zeros(2, dtype=torch.bool), torch.zeros(2))
    boxes = torch.tensor([[5.0, 9.0, 16.0, 16.0], [20.0, 3.0, 16.0, 16.0]])
    views = resample(images, boxes, *still, 32)
    for image, (left, top, w, h), view in zip(images, boxes.int().tolist(), views):
        expected = TF.resized_crop(image, top, left, h, w, [32, 32], antialias=False)
        torch.testing.assert_close(view[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5, rtol=0)
    whole = resample(images, torch.tensor([[0.0, 0.0, 48.0, 40.0]] * 2), *still, 64)
    torch.testing.assert_close(whole, TF.resize(images, [64, 64], antialias=False), atol=2e-5, rtol=0)


def test_rotation_then_mirror_agree_with_torchvision() -> None:
    images = random_images(2, height=33, width=33) / 255
    degrees = torch.tensor([25.0, -70.0])
    views = resample(images, torch.tensor([[0.0, 0.0, 33.0, 33.0]] * 2), torch.tensor([True, False]), degrees, 33)
    rotated = [TF.rotate(image, float(d), T.InterpolationMode.BILINEAR) for image, d in zip(images, degrees)]
    expected = torch.stack([TF.horizontal_flip(rotated[0]), rotated[1]])
    y, x = torch.meshgrid(torch.arange(33) - 16, torch.arange(33) - 16, indexing="ij")
    inside = (x**2 + y**2 < 15**2).expand_as(views)
    torch.testing.assert_close(views[inside], expected[inside], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (32, 32, (0.2, 1.0), (3 / 4, 4 / 3)),
        (48, 200, (0.08, 1.0), (3 / 4, 4 / 3)),
        (20, 400, (0.9, 1.0), (3 / 4, 4 / 3)),  # no try can fit: the fallback
        (400, 20, (0.9, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    count = 3000
    ours = random_boxes(torch.rand(BOX_UNIFORMS, count, generator=generator()), height, width, scale, ratio)
    left, top, w, h = ours.unbind(1)
    assert ((left >= 0) & (top >= 0) & (left + w <= width) & (top + h <= height) & (w > 0) & (h > 0)).all()
    theirs = T.RandomResizedCrop(8, scale=scale, ratio=ratio)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        boxes = [theirs.make_params([torch.empty(1, height, width)]) for _ in range(count)]
    expected = torch.tensor([[box[key] for key in ("left", "top", "width", "height")] for box in boxes])
    for column in range(4):
        assert ks_2samp(ours[:, column].numpy(), expected[:, column].numpy()).pvalue > 1e-3
    assert (left + w).max() == (expected[:, 0] + expected[:, 2]).max()  # every position up to the edge
    assert (top + h).max() == (expected[:, 1] + expected[:, 3]).max()
    areas = ours[:, 2] * ours[:, 3] / (height * width)
    assert float(areas.mean()) == pytest.approx(
        float((expected[:, 2] * expected[:, 3]).float().mean()) / (height * width), rel=0.03
    )


def test_rates_and_ranges_of_the_draw() -> None:
    batch = 20000
    augment = Augment(size=32, rotate=30.0, jitter=(0.8, 0.4, 1.5, 0.1), **NONE)
    draw = augment.draw(seeds(batch), 3, 32, 32)
    tolerance = 4 * math.sqrt(0.25 / batch)
    jittered = (draw.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    for rate, expected in ((draw.mirrored, 0.5), (draw.grey, 0.2), (draw.sigma > 0, 0.5), (jittered, 0.8)):
        assert float(rate.float().mean()) == pytest.approx(expected, abs=tolerance)
    factors = draw.factors[jittered]
    for column, (low, high) in enumerate(((0.2, 1.8), (0.6, 1.4), (0.0, 2.5), (-0.1, 0.1))):
        assert ks_2samp(factors[:, column].numpy(), torch.linspace(low, high, 5000).numpy()).pvalue > 1e-3
    assert ks_2samp(draw.degrees.numpy(), torch.linspace(-30, 30, 5000).numpy()).pvalue > 1e-3
    assert ks_2samp(draw.sigma[draw.sigma > 0].numpy(), torch.linspace(0.1, 2, 5000).numpy()).pvalue > 1e-3
    permutations, counts = draw.order.unique(dim=0, return_counts=True)
    assert len(permutations) == 24
    assert float(counts.float().std()) < 3 * math.sqrt(batch / 24)


def test_whole_view_agrees_with_torchvision_at_the_same_parameters() -> None:
    images = random_images(6)
    augment = Augment(
        size=32, channels=3, preset="natural", blur=1.0, grey=0.5, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    )
    draw = augment.draw(seeds(6), 3, 32, 32)
    draw = draw._replace(boxes=identity(6, 32).boxes)
    for row, view in enumerate(augment.apply(images, draw)):
        image = images[row] / 255
        if draw.mirrored[row]:
            image = TF.horizontal_flip(image)
        for step in draw.order[row].tolist():
            image = STEPS[step](image, float(draw.factors[row, step]))
        if draw.grey[row]:
            image = TF.rgb_to_grayscale(image, 3)
        image = TF.gaussian_blur(image, [3, 3], [float(draw.sigma[row])] * 2)
        expected = TF.normalize(image, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
        torch.testing.assert_close(view, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_same_seeds_give_the_same_bits_and_no_global_state_moves(preset: str) -> None:
    images = random_images(16, channels=len(PRESETS[preset]["mean"]))
    augment = Augment(size=24, channels=images.shape[1], preset=preset)
    state = torch.get_rng_state()
    first, second = augment(images, seeds(16)), augment(images, seeds(16, seed=1))
    assert torch.equal(first, augment(images, seeds(16)))
    assert not torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert first.dtype == torch.float32
    assert first.shape == (16, images.shape[1], 24, 24)


def test_every_image_has_its_own_parameters() -> None:
    images = random_images()[1:2].repeat(32, 1, 1, 1)
    views = Augment(size=32, channels=3, preset="natural")(images, seeds(32))
    assert len(views.unique(dim=0)) == 32


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("preset", "channels", "side"),
    [("digits", 1, 28), ("small_images", 3, 32), ("small_images", 3, 33), ("natural", 3, 97), ("natural", 3, 190)],
)
def test_a_view_is_the_same_bits_in_any_batch(preset: str, channels: int, side: int, threads: int) -> None:
    """Sides that are no multiple of a vector, and images that are and are not split over threads."""
    images = random_images(13, channels, side, side)
    augment = Augment(channels=channels, size=side, preset=preset, rotate=7.0, blur=0.7, grey=0.3)
    together = augment(images, seeds(13))
    order = torch.randperm(13, generator=generator())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in (1, 2, 5, 13):
            parts = [augment(images[part], seeds(13)[part]) for part in order.split(size)]
            assert torch.equal(torch.cat(parts), together[order])
    finally:
        torch.set_num_threads(before)


def test_what_a_seed_stands_for_stays() -> None:
    """Numbers of the first release with counters: runs of the same seed see the same views."""
    draw = Augment(size=32, channels=3).draw(torch.tensor([0, 1, -5]), 3, 32, 32)
    found = torch.cat((draw.boxes, draw.order, draw.factors.mul(1000).round()), 1).int().tolist()
    assert found == [
        [2, 1, 30, 31, 3, 0, 1, 2, 1000, 1000, 1000, 0],
        [0, 1, 29, 28, 1, 3, 2, 0, 877, 934, 925, 14],
        [1, 1, 24, 26, 1, 0, 3, 2, 1165, 618, 623, 60],
    ]


def test_inputs_are_left_unchanged() -> None:
    images = random_images()
    copy = images.clone()
    Augment(size=32, channels=3, preset="natural")(images, seeds(8))
    Plain(size=32, **BARE)(images)
    assert torch.equal(images, copy)


def test_plain_resizes_and_normalises_as_torchvision() -> None:
    images = random_images(height=20, width=20)
    expected = TF.normalize(TF.resize(images / 255, [32, 32], antialias=True), [0.5], [0.25])
    torch.testing.assert_close(Plain(size=32, mean=(0.5,), std=(0.25,))(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "bad",
    [
        {"flip": 1.5},
        {"scale": (0.5, 0.2)},
        {"scale": (0.5, 1.2)},
        {"ratio": (0.0, 1.0)},
        {"blur_sigma": (0.0, 1.0)},
        {"scale": (0.5,)},
        {"jitter": (0.4, 0.4, 0.4, 0.6)},
        {"jitter": (0.4, 0.4, 0.4)},
        {"preset": "none"},
        {"rotate": -1.0},
        {"size": 0},
        {"std": (0.0,)},
    ],
)
def test_bad_arguments_are_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        Augment(**{"size": 32, **NONE, **bad})


def test_bad_images_are_named() -> None:
    augment = Augment(size=32, channels=3, mean=(0.4, 0.4, 0.4))
    with pytest.raises(ValueError, match=r"uint8.*float32"):
        augment(torch.rand(2, 3, 32, 32), seeds(2))
    with pytest.raises(ValueError, match="3 values but images have 1 channel"):
        augment(random_images(channels=1), seeds(8))


def test_images_in_any_memory_format() -> None:
    images = random_images()
    augment = Augment(size=24, channels=3)
    assert torch.equal(
        augment(images.contiguous(memory_format=torch.channels_last), seeds(8)), augment(images, seeds(8))
    )
