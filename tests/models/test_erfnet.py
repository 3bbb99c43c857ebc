"""ERFNet against the published table of layers, and its parts against torch.nn.functional."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.erfnet import Downsampler, ERFNet, FactorizedResidual, Upsampler
from models.weights.checkpoint import load_segmenter
from shards.errors import InputError


def published_shapes(num_channels: int) -> dict[str, tuple[int, ...]]:
    """Write down names and shapes from the paper's table of 23 layers, not from our modules."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, *shape: int, bias: int = 0) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (bias or shape[0],)

    def batch_norm(name: str, channels: int) -> None:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{kind}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    for name, before, after in (("initial_block", 3, 16), ("layers.0", 16, 64), ("layers.6", 64, 128)):
        convolution(f"encoder.{name}.conv", after - before, before, 3, 3)
        batch_norm(f"encoder.{name}.bn", after)
    for layer, before, after in ((0, 128, 64), (3, 64, 16)):
        convolution(f"decoder.layers.{layer}.conv", before, after, 3, 3, bias=after)
        batch_norm(f"decoder.layers.{layer}.bn", after)
    residual = {f"encoder.layers.{i}": 64 if i < 6 else 128 for i in (*range(1, 6), *range(7, 15))}
    residual |= {f"decoder.layers.{i}": 64 if i < 3 else 16 for i in (1, 2, 4, 5)}
    for name, channels in residual.items():
        for number in (1, 2):
            convolution(f"{name}.conv3x1_{number}", channels, channels, 3, 1)
            convolution(f"{name}.conv1x3_{number}", channels, channels, 1, 3)
            batch_norm(f"{name}.bn{number}", channels)
    convolution("encoder.output_conv", num_channels, 128, 1, 1)
    convolution("decoder.output_conv", 16, num_channels, 2, 2, bias=num_channels)
    return shapes


@pytest.mark.parametrize("num_channels", [19, 20])
def test_names_and_shapes_are_the_published_ones(num_channels: int) -> None:
    ours = {name: tuple(value.shape) for name, value in ERFNet(num_channels).state_dict().items()}
    assert ours == published_shapes(num_channels)


def test_it_has_the_published_number_of_parameters() -> None:
    """2.06 M, the encoder's pretraining classifier left out, which no prediction uses."""
    sizes = [p.numel() for name, p in ERFNet(20).named_parameters() if "encoder.output_conv" not in name]
    assert sum(sizes) == 2_064_256


def published(num_channels: int = 20) -> dict[str, Tensor]:
    """Random weights under the names and shapes of the published file."""
    torch.manual_seed(0)
    shapes = published_shapes(num_channels)
    return {n: torch.rand(s) if s else torch.tensor(0) for n, s in shapes.items()}


@pytest.mark.parametrize(
    ("num_channels", "prefix", "gone"),
    [(19, "module.", "nothing"), (20, "", "nothing"), (20, "module.", "num_batches_tracked")],
    ids=["classes", "void", "no batch counters"],
)
def test_a_published_file_loads_strictly(tmp_path: Path, num_channels: int, prefix: str, gone: str) -> None:
    weights = published(num_channels)
    torch.save({prefix + n: v for n, v in weights.items() if not n.endswith(gone)}, tmp_path / "erfnet.pth")
    model = load_segmenter(tmp_path / "erfnet.pth")
    assert not model.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    image = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    assert model(image).shape == (1, num_channels, 16, 24)


def test_a_residual_block_is_the_published_one() -> None:
    torch.manual_seed(0)
    block = FactorizedResidual(4, 0.3, 2).eval()
    for name, value in block.state_dict().items():
        if "running_var" in name:
            value.uniform_(0.5, 2)
        elif "running_mean" in name:
            value.normal_()
    w = block.state_dict()
    x = torch.randn(2, 4, 9, 11)

    def normalised(y: Tensor, name: str) -> Tensor:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(y, mean, var, w[f"{name}.weight"], w[f"{name}.bias"], eps=0.001)

    y = F.relu(F.conv2d(x, w["conv3x1_1.weight"], w["conv3x1_1.bias"], padding=(1, 0)))
    y = F.relu(normalised(F.conv2d(y, w["conv1x3_1.weight"], w["conv1x3_1.bias"], padding=(0, 1)), "bn1"))
    y = F.relu(F.conv2d(y, w["conv3x1_2.weight"], w["conv3x1_2.bias"], padding=(2, 0), dilation=(2, 1)))
    y = F.conv2d(y, w["conv1x3_2.weight"], w["conv1x3_2.bias"], padding=(0, 2), dilation=(1, 2))
    torch.testing.assert_close(block(x), F.relu(normalised(y, "bn2") + x), atol=1e-6, rtol=1e-5)


def test_resolution_changes_are_the_published_ones() -> None:
    x = torch.randn(1, 4, 8, 6)
    down, up = Downsampler(4, 10).eval(), Upsampler(4, 3).eval()
    weights = down.state_dict()
    convolved = F.conv2d(x, weights["conv.weight"], weights["conv.bias"], stride=2, padding=1)
    joined = torch.cat((convolved, F.max_pool2d(x, 2)), dim=1) / (1 + 0.001) ** 0.5
    torch.testing.assert_close(down(x), F.relu(joined), atol=1e-6, rtol=1e-5)
    assert up(x).shape == (1, 3, 16, 12)


def test_images_are_divided_by_255_and_nothing_else_and_dropout_is_for_training_only() -> None:
    model = ERFNet(20).eval()
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    expected = model.decoder(model.encoder(image.float() / 255))
    torch.testing.assert_close(model(image), expected)
    assert torch.equal(model(image), model(image))


def test_other_networks_class_counts_and_sides_are_refused(tmp_path: Path) -> None:
    partial = {name: value for name, value in published().items() if "layers.3" not in name}
    for weights, text in (
        (published(5), "ERFNet with 5 channels; 19, or 20 with void, are needed"),
        (partial, "the weights do not fit the model: .* missing"),
        ({"queries.weight": torch.ones(2)}, "file.pth"),
    ):
        torch.save(weights, tmp_path / "file.pth")
        with pytest.raises(InputError, match=text):
            load_segmenter(tmp_path / "file.pth")
    with pytest.raises(InputError, match="ERFNet: an image of 20x16; both sides must be multiples of 8"):
        ERFNet(19)(torch.zeros(1, 3, 20, 16, dtype=torch.uint8))
