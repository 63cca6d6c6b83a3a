"""Inception v3, whose features FID is defined by, in the two forms that the field uses.

`tensorflow` is the network of 2015 of FID's own code, in the form that torch-fidelity and pytorch-fid gave it;
`torchvision` is what DF-GAN and its successors use. They differ in weights, in pooling and in how images are resized
and scaled.
It is written out here because both torch-fidelity and torchvision's own import torchvision, which has to be built for
the very torch that is installed; and because torch-fidelity unpickles the weights, which may run code.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from fastt2i.errors import UserError
from fastt2i.files.atomic import sha256

Form = Literal["tensorflow", "torchvision"]
#: SHA-256 of torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`: what a figure must come from to be a FID.
FID_WEIGHTS = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FEATURES, IMAGE_SIZE = 2048, 299
#: Classes of the last layer, by which the forms' files are told apart.
CLASSES: dict[int, Form] = {1008: "tensorflow", 1000: "torchvision"}

#: A convolution: name, channels, kernel height and width, stride.
Conv = tuple[str, int, tuple[int, int], int]
#: A step of a branch: a convolution, several side by side, or a pooling.
Step = Conv | list[Conv] | str


class BasicConv2d(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int = 1, *, pad: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad else 0
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches whose outputs are joined: convolutions one after the other, a pooling before them, or a fork at the end.

    Args:
        channels: of the input.
        branches: of each branch its convolutions; several in a list are a fork, and a word is a pooling: `average`,
            which leaves the padding out, `average-with-padding`, `max`, or `max-halving`.
    """

    def __init__(self, channels: int, branches: Sequence[Sequence[Step]]) -> None:
        super().__init__()
        self.out = 0
        self._plan: list[list[list[str] | str]] = []
        for branch in branches:
            plan: list[list[str] | str] = []
            width = channels
            for step in branch:
                if isinstance(step, str):
                    plan.append(step)
                    continue
                convs = step if isinstance(step, list) else [step]
                for name, out, kernel, stride in convs:
                    self.add_module(name, BasicConv2d(width, out, kernel, stride, pad=stride == 1))
                plan.append([name for name, *_ in convs])
                width = sum(out for _, out, *_ in convs)
            self._plan.append(plan)
            self.out += width

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for plan in self._plan:
            y = x
            for step in plan:
                y = _pool(y, step) if isinstance(step, str) else torch.cat([getattr(self, n)(y) for n in step], dim=1)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "max-halving":
        return F.max_pool2d(x, 3, 2)
    if kind == "max":
        return F.max_pool2d(x, 3, 1, 1)
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=kind == "average-with-padding")


def _conv(name: str, out: int, height: int, width: int = 0, stride: int = 1) -> Conv:
    return f"branch{name}", out, (height, width or height), stride


def _mixed_35(channels: int, pooled: int, pool: str) -> Mixed:
    five = [_conv("5x5_1", 48, 1), _conv("5x5_2", 64, 5)]
    three = [_conv("3x3dbl_1", 64, 1), _conv("3x3dbl_2", 96, 3), _conv("3x3dbl_3", 96, 3)]
    return Mixed(channels, [[_conv("1x1", 64, 1)], [*five], [*three], [pool, _conv("_pool", pooled, 1)]])


def _halving_35(channels: int) -> Mixed:
    double = [_conv("3x3dbl_1", 64, 1), _conv("3x3dbl_2", 96, 3), _conv("3x3dbl_3", 96, 3, stride=2)]
    return Mixed(channels, [[_conv("3x3", 384, 3, stride=2)], [*double], ["max-halving"]])


def _mixed_17(channels: int, c: int, pool: str) -> Mixed:
    seven = [_conv("7x7_1", c, 1), _conv("7x7_2", c, 1, 7), _conv("7x7_3", 192, 7, 1)]
    double = [_conv("7x7dbl_1", c, 1), _conv("7x7dbl_2", c, 7, 1), _conv("7x7dbl_3", c, 1, 7)]
    double += [_conv("7x7dbl_4", c, 7, 1), _conv("7x7dbl_5", 192, 1, 7)]
    return Mixed(channels, [[_conv("1x1", 192, 1)], [*seven], [*double], [pool, _conv("_pool", 192, 1)]])


def _halving_17(channels: int) -> Mixed:
    three = [_conv("3x3_1", 192, 1), _conv("3x3_2", 320, 3, stride=2)]
    seven = [_conv("7x7x3_1", 192, 1), _conv("7x7x3_2", 192, 1, 7), _conv("7x7x3_3", 192, 7, 1)]
    return Mixed(channels, [[*three], [*seven, _conv("7x7x3_4", 192, 3, stride=2)], ["max-halving"]])


def _mixed_8(channels: int, pool: str) -> Mixed:
    three: list[Step] = [_conv("3x3_1", 384, 1), [_conv("3x3_2a", 384, 1, 3), _conv("3x3_2b", 384, 3, 1)]]
    double = [_conv("3x3dbl_1", 448, 1), _conv("3x3dbl_2", 384, 3)]
    fork = [_conv("3x3dbl_3a", 384, 1, 3), _conv("3x3dbl_3b", 384, 3, 1)]
    return Mixed(channels, [[_conv("1x1", 320, 1)], three, [*double, fork], [pool, _conv("_pool", 192, 1)]])


class InceptionV3(nn.Module):
    """Pooled features of images.

    `forward` takes levels 0 to 255, uint8 or float32, (N, 3, H, W), and gives float32 (N, 2048).

    Args:
        form: `tensorflow`: resized as TensorFlow 1 does, bilinear with corner 0 on corner 0, then (level - 128) / 128;
            averages leave out the padding, and the last block pools by the maximum. `torchvision`: resized bilinear
            with half-pixel centres, then as torchvision's weights were ported, level / 255 as if it were normalised by
            ImageNet's mean and deviation; averages count the padding.
    """

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form = form
        average, last = ("average", "max") if form == "tensorflow" else ("average-with-padding",) * 2
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, (3, 3), 2, pad=False)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, (3, 3), pad=False)
        self.Conv2d_2b_3x3 = BasicConv2d(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = BasicConv2d(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, (3, 3), pad=False)
        self.Mixed_5b = _mixed_35(192, 32, average)
        self.Mixed_5c = _mixed_35(256, 64, average)
        self.Mixed_5d = _mixed_35(288, 64, average)
        self.Mixed_6a = _halving_35(288)
        self.Mixed_6b = _mixed_17(768, 128, average)
        self.Mixed_6c = _mixed_17(768, 160, average)
        self.Mixed_6d = _mixed_17(768, 160, average)
        self.Mixed_6e = _mixed_17(768, 192, average)
        self.Mixed_7a = _halving_17(768)
        self.Mixed_7b = _mixed_8(1280, average)
        self.Mixed_7c = _mixed_8(2048, last)

    def forward(self, levels: Tensor) -> Tensor:
        x = scaled(levels.float(), self.form)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_pool(x, "max-halving")))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_pool(x, "max-halving"))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))


def scaled(levels: Tensor, form: Form) -> Tensor:
    """Inputs of a form's network (N, 3, 299, 299) from levels 0 to 255, float32 (N, 3, H, W)."""
    if form == "tensorflow":
        return (_resize_as_tensorflow(levels) - 128) / 128
    x = F.interpolate(levels, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False) / 255
    mean, deviation = (x.new_tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (x * deviation + mean - 0.5) / 0.5


def _resize_as_tensorflow(x: Tensor) -> Tensor:
    """Bilinear, without antialiasing, output pixel i at i * size / 299 of the input, as TensorFlow 1's default."""
    for dim in (3, 2):
        size = x.shape[dim]
        place = torch.arange(IMAGE_SIZE, device=x.device, dtype=torch.float32) * (size / IMAGE_SIZE)
        low = place.long()
        high = (low + 1).clamp_max(size - 1)
        share = (place - low).unsqueeze(-1) if dim == 2 else place - low
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, high), share)
    return x


def load_inception(path: str | Path) -> tuple[InceptionV3, str]:
    """The network of a weights file, `.pth` or `.safetensors`, and the file's SHA-256; nothing in it is executed.

    Raises:
        UserError: the file cannot be read, or holds no weights of Inception v3 in one of the two forms.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            weights = safetensors.torch.load(content)
        else:
            weights = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:  # torch's advice is to execute what the file holds
        raise UserError(f"{path} holds no weights that can be read: it is no file of tensors alone") from error
    except (RuntimeError, ValueError, EOFError, KeyError, SafetensorError) as error:
        what = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{path} holds no weights that can be read: {what}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} is not a file of weights: it has to map names to tensors")
    classes = weights["fc.weight"].shape[0] if "fc.weight" in weights else 0
    if classes not in CLASSES:
        raise UserError(
            f"{path} holds the weights of another network: those of Inception v3 end in a layer fc of 1008 classes "
            "(torch-fidelity's) or 1000 (torchvision's)"
        )
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        network = InceptionV3(CLASSES[classes])
    unused = ("fc.", "AuxLogits.")
    try:
        network.load_state_dict({name: t for name, t in weights.items() if not name.startswith(unused)})
    except RuntimeError as error:
        what = str(error).splitlines()[-1].strip()[:200]
        raise UserError(f"{path} holds the weights of another network than Inception v3: {what}") from error
    return network.eval().requires_grad_(False), sha256(content)
