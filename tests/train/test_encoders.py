"""Encoders: shapes, unit norm, independence of rows under group norm, resolution of the stems."""

import pytest
import torch
from negbank.train.encoders import ENCODERS, ConvNet, Embedder, Projector, resnet18, resnet50
from torch import Tensor, nn

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def embedder(name: str, norm: str, dim: int = 16) -> Embedder:
    torch.manual_seed(0)
    backbone = ENCODERS[name](channels=1, norm=norm)
    return Embedder(backbone, Projector(backbone.features, 32, dim, norm="none" if norm == "group" else norm))


def images(count: int, channels: int = 1, size: int = 16) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_shapes_and_unit_norm(name: str, norm: str) -> None:
    model = embedder(name, norm)
    features = model.backbone(images(5))
    assert features.shape == (5, model.backbone.features)
    z = model(images(5))
    assert z.shape == (5, 16)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    z.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_resnet50_features() -> None:
    assert resnet50(channels=1).features == 2048
    with torch.no_grad():
        assert resnet50(channels=1, norm="group")(images(1, size=16)).shape == (1, 2048)


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (3, 33), (1, 8)])
def test_convnet_takes_any_size(channels: int, size: int) -> None:
    assert ConvNet(channels, width=16, norm="none", features=48)(images(2, channels, size)).shape == (2, 48)


def test_autocast_embeddings_are_float32_and_of_unit_norm() -> None:
    model = embedder("convnet", "group").to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.backbone(images(3)).dtype == torch.bfloat16
        z = model(images(3))
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3), atol=1e-6, rtol=0)


def test_float64_modules_give_float64_embeddings() -> None:
    assert embedder("convnet", "group").double()(images(2).double()).dtype == torch.float64


@pytest.mark.parametrize("name", ["convnet", "resnet18"])
@pytest.mark.parametrize("training", [True, False])
def test_group_norm_embeds_a_row_alone_as_in_a_batch(name: str, training: bool) -> None:
    model = embedder(name, "group").train(training)
    with torch.no_grad():
        together = model(images(6))
        alone = torch.cat([model(image.unsqueeze(0)) for image in images(6)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=0)


def test_batch_norm_does_not() -> None:
    """The counterexample, so that the test above can fail."""
    model = embedder("convnet", "batch")
    with torch.no_grad():
        assert (model(images(6))[:3] - model(images(6)[:3])).abs().max() > 1e-2


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_group_norm_leaves_no_batch_statistics(name: str) -> None:
    model = embedder(name, "group")
    assert not any(isinstance(module, BATCH_NORMS) for module in model.modules())
    assert not list(model.buffers())


@pytest.mark.parametrize(("small_images", "side"), [(True, 32), (False, 8)])
def test_stem_resolution(small_images: bool, side: int) -> None:
    net = resnet18(channels=3, small_images=small_images)
    maps = net.maxpool(net.relu(net.bn1(net.conv1(images(2, 3, 32)))))
    assert maps.shape == (2, 64, side, side)


def test_random_initialisation_keeps_the_scale_of_images_without_norm() -> None:
    torch.manual_seed(0)
    features = ConvNet(norm="none")(images(64))
    assert 0.1 < features.square().mean().sqrt() < 10


@pytest.mark.parametrize(("layers", "linear"), [(1, 1), (2, 2), (3, 3)])
def test_projector_depth(layers: int, linear: int) -> None:
    projector = Projector(8, 16, 4, layers=layers)
    assert sum(isinstance(module, nn.Linear) for module in projector.modules()) == linear
    assert sum(isinstance(module, nn.BatchNorm1d) for module in projector.modules()) == linear - 1
    assert projector(torch.randn(5, 8)).shape == (5, 4)


def test_errors_name_argument_and_value() -> None:
    with pytest.raises(ValueError, match="norm='layer'"):
        ConvNet(norm="layer")
    with pytest.raises(ValueError, match="groups of 16 channels, but a layer has 24"):
        ConvNet(width=24, norm="group")
    with pytest.raises(ValueError, match=r"norm='none'.*'batch' or 'group'"):
        resnet18(norm="none")
    with pytest.raises(ValueError, match="norm='group'"):
        Projector(8, 8, 8, norm="group")
    with pytest.raises(ValueError, match="layers=0"):
        Projector(8, 8, 8, layers=0)
