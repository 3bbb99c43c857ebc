"""ERFNet: a small convolutional segmenter, the per-pixel baseline beside EoMT.

    image ─ ½ ─ ¼ ─ 5 × residual ─ ⅛ ─ 8 × dilated residual ─ ¼ ─ 2 × residual ─ ½ ─ 2 × residual ─ classes

Names and shapes of the weights are the published ones, so that published files load strictly. The encoder's
own classifier (`encoder.output_conv`) was used to pretrain it; it is part of the files and of no prediction.

Source: Romera et al., "ERFNet: Efficient Residual Factorized ConvNet for Real-Time Semantic Segmentation",
IEEE T-ITS 2018; layer table and weight names of https://github.com/Eromera/erfnet_pytorch. We differ: images
come as uint8 and are divided by 255 inside.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from shards.errors import InputError
from shards.schema import CITYSCAPES, NUM_CLASSES

DILATIONS = (2, 4, 8, 16)
BATCH_NORM_EPS = 1e-3


class Downsampler(nn.Module):
    """Halve the resolution: a strided convolution beside a max pooling, joined."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out - channels_in, 3, stride=2, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.bn = nn.BatchNorm2d(channels_out, eps=BATCH_NORM_EPS)

    def forward(self, x: Float[Tensor, "B _C _h _w"]) -> Float[Tensor, "B C2 h2 w2"]:
        return F.relu(self.bn(torch.cat((self.conv(x), self.pool(x)), dim=1)))


class Upsampler(nn.Module):
    """Double the resolution by a transposed convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(channels_in, channels_out, 3, stride=2, padding=1, output_padding=1)
        self.bn = nn.BatchNorm2d(channels_out, eps=BATCH_NORM_EPS)

    def forward(self, x: Float[Tensor, "B _C _h _w"]) -> Float[Tensor, "B C2 h2 w2"]:
        return F.relu(self.bn(self.conv(x)))


class FactorizedResidual(nn.Module):
    """A residual block of two 3x3 convolutions, each cut into a 3x1 and a 1x3; the second pair is dilated."""

    def __init__(self, channels: int, dropout: float, dilation: int) -> None:
        super().__init__()
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        tall, wide = (dilation, 1), (1, dilation)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=tall)
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=wide)
        self.bn2 = nn.BatchNorm2d(channels, eps=BATCH_NORM_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        y = F.relu(self.bn1(self.conv1x3_1(F.relu(self.conv3x1_1(x)))))
        y = self.bn2(self.conv1x3_2(F.relu(self.conv3x1_2(y))))
        return F.relu(self.dropout(y) + x)


class Encoder(nn.Module):
    """Image to 128 channels at an eighth of the resolution."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.initial_block = Downsampler(3, 16)
        self.layers = nn.Sequential(
            Downsampler(16, 64),
            *[FactorizedResidual(64, 0.03, 1) for _ in range(5)],
            Downsampler(64, 128),
            *[FactorizedResidual(128, 0.3, dilation) for _ in range(2) for dilation in DILATIONS],
        )
        self.output_conv = nn.Conv2d(128, num_channels, 1)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 128 h w"]:
        return self.layers(self.initial_block(x))


class Decoder(nn.Module):
    """Features to logits at the resolution of the image."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Upsampler(128, 64),
            *[FactorizedResidual(64, 0.0, 1) for _ in range(2)],
            Upsampler(64, 16),
            *[FactorizedResidual(16, 0.0, 1) for _ in range(2)],
        )
        self.output_conv = nn.ConvTranspose2d(16, num_channels, 2, stride=2)

    def forward(self, x: Float[Tensor, "B 128 h w"]) -> Float[Tensor, "B C H W"]:
        return self.output_conv(self.layers(x))


class ERFNet(nn.Module):
    """Per-pixel classifier of 19 classes, or of 20 channels with the published void channel last."""

    stride = 8
    """Image sides have to be multiples of it."""
    image_size = (512, 1024)
    """Height and width in pixels that it was trained at: half of a Cityscapes frame."""
    classes = CITYSCAPES

    def __init__(self, num_channels: int = NUM_CLASSES + 1) -> None:
        super().__init__()
        self.encoder = Encoder(num_channels)
        self.decoder = Decoder(num_channels)

    def forward(self, image: UInt8[Tensor, "B 3 H W"]) -> Float[Tensor, "B C H W"]:
        """Predict logits, the void channel included if there is one, from sRGB in [0, 255].

        It is divided by 255 and not normalised otherwise, as it was trained.
        """
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            needed = f"both sides must be multiples of {self.stride}"
            raise InputError(f"ERFNet: an image of {height}x{width}; {needed}")
        return self.decoder(self.encoder(image.float() / 255))


def fit_erfnet(weights: Mapping[str, Tensor], where: str) -> tuple[ERFNet, dict[str, Tensor]]:
    """Build an ERFNet with as many channels as the weights have, and complete the weights for it.

    Added are batch counters, which PyTorch of 2017 did not keep, and which inference does not use. Nothing is
    loaded.
    """
    name = "decoder.output_conv.weight"
    num_channels = weights[name].shape[1] if name in weights and weights[name].ndim == 4 else NUM_CLASSES + 1
    if num_channels not in (NUM_CLASSES, NUM_CLASSES + 1):
        needed = f"{NUM_CLASSES}, or {NUM_CLASSES + 1} with void, are needed"
        raise InputError(f"{where}: ERFNet with {num_channels} channels; {needed}")
    model = ERFNet(num_channels)
    counters = {n: v for n, v in model.state_dict().items() if n.endswith("num_batches_tracked")}
    return model, {**counters, **weights}
