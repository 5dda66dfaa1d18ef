"""Encoders: shapes, unit norm, independence of rows under group norm, resolution of the stems."""

import functools

import pytest
import torch
from torch import Tensor, nn

from negbank.train.encoders import ConvNet, Embedder, Perceptron, Projector, convnet, mlp, resnet18, resnet50

ENCODERS = {"convnet": convnet, "resnet18": resnet18, "resnet50": resnet50}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def embedder(name: str, norm: str, dim: int = 16) -> Embedder:
    torch.manual_seed(0)
    head = functools.partial(Projector, hidden=32, dim=dim, norm="none" if norm == "group" else norm)
    return ENCODERS[name](channels=1, norm=norm, projector=head)


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
    assert resnet50(channels=1).backbone.features == 2048
    with torch.no_grad():
        assert resnet50(channels=1, norm="group").backbone(images(1, size=16)).shape == (1, 2048)


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
    net = resnet18(channels=3, small_images=small_images).backbone
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


def test_weights_are_drawn_backbone_first():
    """Of a seed the same weights as when the two are made one after the other."""
    torch.manual_seed(5)
    made = resnet18(channels=1)
    torch.manual_seed(5)
    backbone = ConvNet(channels=1)
    by_hand = Embedder(backbone, Projector(256, 256, 128))
    torch.manual_seed(5)
    assert all(map(torch.equal, convnet(channels=1).state_dict().values(), by_hand.state_dict().values()))
    assert made.projector.layers[0].weight.shape == (2048, 512)


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_mlp_takes_tensors_of_any_shape(norm: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = mlp(shape=(3, 4), hidden=24, layers=3, norm=norm)
    inputs = (torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1)) * 5).to(dtype)
    assert model.backbone(inputs).shape == (5, 24)
    torch.testing.assert_close(model(inputs).norm(dim=1), torch.ones(5))
    assert sum(isinstance(module, nn.Linear) for module in model.backbone.modules()) == 3
    torch.testing.assert_close(model.eval()(inputs[:2]), model(inputs)[:2])
    assert Perceptron(12, 8, 1, "none")(inputs).min() >= 0


def test_errors_name_argument_and_value() -> None:
    with pytest.raises(ValueError, match="norm='layer': expected one of batch, group, none"):
        convnet(channels=1, norm="layer")
    with pytest.raises(ValueError, match="groups of 16 channels, but a layer has 24"):
        ConvNet(width=24, norm="group")
    with pytest.raises(ValueError, match=r"norm='none': expected one of batch, group$"):
        resnet18(channels=1, norm="none")
    with pytest.raises(ValueError, match="norm='group'"):
        Projector(8, 8, 8, norm="group")
    with pytest.raises(ValueError, match="layers=0: expected at least 1"):
        Projector(8, 8, 8, layers=0)
