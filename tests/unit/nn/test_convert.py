"""Models of other people: their gates become fused layers, and what they compute stays the same."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastt2i.nn import convert

CHANNELS = 6


class AttnGanGlu(nn.Module):
    """As in AttnGAN's model.py."""

    def forward(self, x: Tensor) -> Tensor:
        nc = x.size(1)
        assert nc % 2 == 0, "channels dont divide 2!"
        nc = int(nc / 2)
        return x[:, :nc] * torch.sigmoid(x[:, nc:])


def conv3x3(in_planes: int, out_planes: int) -> nn.Conv2d:
    return nn.Conv2d(in_planes, out_planes, kernel_size=3, stride=1, padding=1, bias=False)


def up_block(in_planes: int, out_planes: int) -> nn.Sequential:
    """AttnGAN's upBlock."""
    up = nn.Upsample(scale_factor=2, mode="nearest")
    return nn.Sequential(up, conv3x3(in_planes, out_planes * 2), nn.BatchNorm2d(out_planes * 2), AttnGanGlu())


class ResBlock(nn.Module):
    """AttnGAN's."""

    def __init__(self, channel_num: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            conv3x3(channel_num, channel_num * 2),
            nn.BatchNorm2d(channel_num * 2),
            AttnGanGlu(),
            conv3x3(channel_num, channel_num),
            nn.BatchNorm2d(channel_num),
        )

    def forward(self, x: Tensor) -> Tensor:
        residual = x
        out = self.block(x)
        out += residual
        return out


class Noise(nn.Module):
    """lightweight-gan's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.1))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        b, _, h, w, device = *x.shape, x.device
        if noise is None:
            noise = torch.randn(b, 1, h, w, device=device, dtype=x.dtype)
        return x + self.weight * noise


class Conv2dSame(nn.Module):
    """lightweight-gan's."""

    def __init__(self, dim_in: int, dim_out: int, kernel_size: int) -> None:
        super().__init__()
        self.padding = (kernel_size // 2, kernel_size // 2 + (kernel_size % 2 - 1))
        self.conv = nn.Conv2d(dim_in, dim_out, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (*self.padding, *self.padding)))


def lightweight_initial(latent: int) -> nn.Sequential:
    return nn.Sequential(nn.ConvTranspose2d(latent, 8, 4), nn.BatchNorm2d(8), nn.GLU(dim=1))


def lightweight_layer(chan_in: int, chan_out: int) -> nn.Sequential:
    conv = Conv2dSame(chan_in, chan_out * 2, 3)
    return nn.Sequential(nn.Upsample(scale_factor=2), conv, Noise(), nn.BatchNorm2d(chan_out * 2), nn.GLU(dim=1))


def simple_decoder(chan_in: int) -> nn.ModuleList:
    """lightweight-gan's: two blocks that upsample, and a convolution to an image."""
    layers = [
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(c, c // 2 * 2, 3, padding=1), nn.GLU(dim=1))
        for c in (chan_in, chan_in // 2)
    ]
    return nn.ModuleList([*layers, nn.Sequential(nn.Conv2d(1, 3, 3, padding=1))])


class InpaintingConv(nn.Module):
    """Two convolutions, as in repositories of free-form inpainting."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.LeakyReLU(0.2, inplace=True)
        self.conv2d = nn.Conv2d(CHANNELS, 4, 3, 2, 1)
        self.mask_conv2d = nn.Conv2d(CHANNELS, 4, 3, 2, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, input: Tensor) -> Tensor:
        x = self.conv2d(input)
        mask = self.mask_conv2d(input)
        x = self.activation(x) * self.sigmoid(mask) if self.activation is not None else x * self.sigmoid(mask)
        return x


class Written(nn.Module):
    """A gate written in a forward, of a convolution of an upsampled tensor."""

    def __init__(self, gate: Callable[[Tensor], Tensor], *, norm: bool = False, interpolate: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 8, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.glu = nn.GLU(dim=1)
        self.interpolate, self.norms, self.gate = interpolate, norm, gate

    def forward(self, x: Tensor) -> Tensor:
        if self.interpolate:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.conv(x)  # sigmoid
        if self.norms:
            x = self.norm(x)
        return self.gate(x).mul(3)


def chunked(x: Tensor) -> Tensor:
    f, g = x.chunk(2, dim=1)
    return F.leaky_relu(f, 0.3) * torch.sigmoid(g)


def split_by_shape(x: Tensor) -> Tensor:
    f, g = torch.split(x, x.shape[1] // 2, dim=1)
    return g.sigmoid() * F.elu(f)


def split_by_number(x: Tensor) -> Tensor:
    f, g = x.split([4, 4], 1)
    return torch.mul(torch.tanh(f), g.sigmoid())


def sliced(x: Tensor) -> Tensor:
    return x[:, : x.size(1) // 2] * torch.sigmoid(x[:, x.size(1) // 2 :])


def glued(x: Tensor) -> Tensor:
    return F.glu(x, dim=1)


def gate_first(x: Tensor) -> Tensor:
    g, f = x.chunk(2, dim=1)
    return torch.sigmoid(g) * f


def over_pixels(x: Tensor) -> Tensor:
    f, g = x.chunk(2, dim=3)
    return torch.sigmoid(g) * f


def of_a_third(x: Tensor) -> Tensor:
    return x[:, :3] * torch.sigmoid(x[:, 5:])


def used_twice(x: Tensor) -> Tensor:
    f, g = x.chunk(2, dim=1)
    return f * torch.sigmoid(g) + f


def with_noise(x: Tensor) -> Tensor:
    return F.glu(x + torch.randn(8, 1, 1), dim=1)


def by_value(x: Tensor) -> Tensor:
    return F.glu(x if x.sum() > 0 else -x, dim=1)


def results(model: nn.Module, *, training: bool) -> list[Tensor]:
    """Output, gradients of input and of all parameters, statistics of normalisations."""
    model.train(training)
    x = torch.randn(3, CHANNELS, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        y = model(x)
    gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
    return [y.detach(), *gradients, *model.buffers()]


def made(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    model = block.double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def kinds(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules()}


@pytest.mark.parametrize(
    ("block", "done"),
    [
        (up_block(CHANNELS, 4), "1 Gate put in"),
        (ResBlock(CHANNELS), "1 Gate put in"),
        (nn.Sequential(conv3x3(CHANNELS, 8), AttnGanGlu()), "1 GatedConv2d put in"),
        (nn.Sequential(nn.Upsample(scale_factor=2), conv3x3(CHANNELS, 8), nn.GLU(-3)), "1 UpsampleGatedConv2d put in"),
        (nn.Sequential(nn.AvgPool2d((4, 6)), lightweight_initial(CHANNELS)), "1 Gate put in"),
        (lightweight_layer(CHANNELS, 4), "1 Gate put in"),
        (nn.Sequential(*simple_decoder(CHANNELS)[:1]), "1 UpsampleGatedConv2d put in"),
        (nn.Sequential(nn.Flatten(), nn.Linear(24 * CHANNELS, 8), nn.BatchNorm1d(8), AttnGanGlu()), "1 Gate put in"),
        (Written(chunked), "1 UpsampleGatedConv2d put in"),
        (Written(split_by_shape, interpolate=False), "1 GatedConv2d put in"),
        (Written(split_by_number), "1 UpsampleGatedConv2d put in"),
        (Written(sliced), "1 UpsampleGatedConv2d put in"),
        (Written(glued, norm=True), "1 gate in a forward put in"),
    ],
)
def test_the_same_is_computed(block: nn.Module, done: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Outputs, gradients and statistics, in training and evaluation; parameters stay, and have their names."""
    old = made(block)
    new = copy.deepcopy(old)
    new.glu = nn.Identity() if hasattr(new, "glu") else None  # a layer that is not used
    parameters, names = list(new.parameters()), list(new.state_dict())
    assert convert(new) is new
    assert capsys.readouterr().out == f"fastt2i.nn.convert: {done}\n"
    assert list(new.state_dict()) == names and all(a is b for a, b in zip(new.parameters(), parameters, strict=True))
    for training in (True, False):
        torch.testing.assert_close(results(new, training=training), results(old, training=training))
    assert not {"GLU", "AttnGanGlu"} & kinds(new)
    convert(new)
    assert capsys.readouterr().out == "fastt2i.nn.convert: nothing put in\n", "what is fused was converted again"
    torch.testing.assert_close(results(new, training=True), results(old, training=True))


def test_two_convolutions_become_one() -> None:
    old = made(InpaintingConv())
    new = convert(convert(copy.deepcopy(old)), None)
    assert "GatedConv2d" in kinds(new) and "Conv2d" not in kinds(new)
    y, dx = (results(model, training=True)[:2] for model in (new, old))
    torch.testing.assert_close(y, dx)


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (Written(gate_first), "its gate half comes first"),
        (Written(over_pixels), "it does not cut its channels in two halves"),
        (Written(of_a_third), "it cannot be told whether it cuts its channels in two halves"),
        (Written(used_twice), "what it gates is used elsewhere too"),
        (Written(with_noise), "its forward makes a tensor"),
        (Written(by_value), "its forward cannot be traced (TraceError: symbolically traced variables"),
    ],
)
def test_what_is_left_is_told_and_computes_what_it_did(block: nn.Module, reason: str) -> None:
    old = made(block)
    new = copy.deepcopy(old)
    new.glu = nn.Identity()
    told: list[str] = []
    convert(new, told.append)
    assert len(told) == 1 and f"left as they are: the model (Written): {reason}" in told[0]
    assert "forward" not in vars(new) and kinds(new) == kinds(old) - {"GLU"}
    torch.testing.assert_close(results(new, training=True), results(old, training=True))


class Fading(Written):
    """What its forward reads may be another number at the next step."""

    alpha = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.conv(x), dim=1) * self.alpha


class Counting(Written):
    steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return F.glu(self.conv(x), dim=1)


class Dropping(Written):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.glu(self.conv(x), dim=1), training=self.training)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Fading, "its forward reads alpha, a number that may change"),
        (Counting, "its forward changes what the module holds"),
        (Dropping, "its forward differs between training and evaluation"),
    ],
)
def test_what_may_change_is_not_frozen(kind: type[Written], reason: str) -> None:
    model = nn.Sequential(kind(glued))
    told: list[str] = []
    convert(model, told.append)
    assert f"0 ({kind.__name__}): {reason}" in told[0]
    assert model[0].training and "steps" not in vars(model[0]) and type(model[0]) is kind


def test_layers_with_hooks_or_in_two_places_are_not_merged() -> None:
    conv = conv3x3(CHANNELS, 2 * CHANNELS)
    model = made(nn.Sequential(conv, nn.GLU(1), nn.Sequential(conv, nn.GLU(1))))
    old = copy.deepcopy(model)
    convert(model, None)
    assert "GatedConv2d" not in kinds(model) and "Gate" in kinds(model)
    torch.testing.assert_close(results(model, training=True)[0], results(old, training=True)[0])
    hooked = nn.Sequential(conv3x3(CHANNELS, 8), nn.GLU(1))
    hooked[0].register_forward_hook(lambda *_: None)
    hooked[1].register_forward_hook(lambda *_: None)
    told: list[str] = []
    convert(hooked, told.append)
    assert told == ["fastt2i.nn.convert: nothing put in"] and kinds(hooked) == {"Sequential", "Conv2d", "GLU"}


def test_a_converted_model_is_copied_and_not_pickled() -> None:
    model = convert(made(Written(chunked)), None)
    before = results(model, training=False)[0]
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.conv.weight.zero_()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(results(model, training=False)[0], before)
    assert not torch.equal(results(twin, training=False)[0], before)
    with pytest.raises(TypeError, match="save its state_dict"):
        pickle.dumps(model)


def test_a_model_that_is_a_gate() -> None:
    assert type(convert(nn.GLU(dim=1), None)).__name__ == "Gate"
    assert isinstance(convert(nn.GLU(), None), nn.GLU)
