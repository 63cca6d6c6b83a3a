"""A block's operator on the modulated gate's kernels against a float64 reference: values and both derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.kernels import modulated_gate as kernels
from fastt2i.ops import modulated_gated_block
from fastt2i.ops.gated_block.functional import ModulatedConv
from tests.kernels.test_gate_kernel import BOUNDS, draw, error
from tests.kernels.test_modulated_gate_kernel import GAIN, derivatives

pytestmark = pytest.mark.usefixtures("poisoned")

#: (B, C, H, W) of the output; channels in bytes of signs that are full, not full, and several with a rest.
SHAPES = [(2, 3, 5, 3), (1, 8, 4, 4), (1, 1, 1, 1), (2, 70, 3, 3)]
Given = dict[str, Tensor | None]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: str, biased: bool) -> Given:
    """Of `gated_block`, by name."""
    batch, channels, *size = shape
    chunked = draw((batch, 4 * channels), dtype, device, "contiguous", 2).chunk(4, dim=1)  # as the networks' are
    biases = [draw((2 * channels,), dtype, device, "contiguous", seed) if biased else None for seed in (1, 5)]
    return {
        "pre": draw((batch, 2 * channels, *size), dtype, device, layout, 0),
        "bias": biases[0],
        "scale": chunked[0],
        "shift": chunked[2],
        "weight": draw((2 * channels, channels, 3, 3), dtype, device, layout, 3) / (9 * channels) ** 0.5,
        "residual_bias": biases[1],
        "residual_scale": chunked[1],
        "residual_shift": chunked[3],
    }


def reference(given: Given, activation: str, output_slope: float) -> Tensor:
    from fastt2i.ops.gate.reference import activate

    def modulated(pre: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
        f, g = (pre if bias is None else pre + bias[:, None, None]).chunk(2, dim=1)
        return scale[..., None, None] * (activate(f, activation, 0.2) * torch.sigmoid(g)) + shift[..., None, None]

    pre, *first, weight = list(given.values())[:5]
    u = modulated(pre, *first)
    y = u + modulated(F.conv2d(u, weight, padding=1), *list(given.values())[5:])
    return F.leaky_relu(GAIN * y, output_slope)


def ours(activation: str, output_slope: float) -> Callable[[Given], Tensor]:
    from fastt2i.ops.gated_block.triton_ops import gated_block

    return lambda given: gated_block(*given.values(), GAIN, activation, 0.2, output_slope)[0]


def both(
    given: Given, upstream: Tensor, activation: str, output_slope: float, twice: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was found by the operator, and the truth."""
    wide = {name: None if t is None else t.double() for name, t in given.items()}
    truth = derivatives(lambda g: reference(g, activation, output_slope), wide, upstream.double(), twice)
    return derivatives(ours(activation, output_slope), given, upstream, twice), truth


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("output_slope", [1.0, 0.2])
@pytest.mark.parametrize(("layout", "biased"), [("channels_last", True), ("contiguous", False)])
def test_values_and_gradients(
    dtype: torch.dtype, output_slope: float, layout: str, biased: bool, device: torch.device
) -> None:
    # In half precision what lies between the convolutions is rounded, too, and a sign that this turns changes a
    # gradient by more than rounding does; of few numbers none lies so near to zero.
    for shape in SHAPES if dtype == torch.float32 else SHAPES[:1]:
        given = arguments(shape, dtype, device, layout, biased)
        upstream = draw(shape, dtype, device, layout, 4)
        found, truth = both(given, upstream, "silu", output_slope, twice=False)
        assert found.keys() == truth.keys()
        for name in truth:
            assert found[name].dtype == dtype and found[name].shape == truth[name].shape
            assert error(found[name], truth[name]) < 4 * BOUNDS[dtype], (name, shape)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("output_slope", [1.0, 0.2])
def test_second_derivatives(activation: str, output_slope: float, device: torch.device) -> None:
    given = arguments(SHAPES[0], torch.float32, device, "channels_last", True)
    upstream = draw(SHAPES[0], torch.float32, device, "channels_last", 4)
    found, truth = both(given, upstream, activation, output_slope, twice=True)
    assert {name for name, d in truth.items() if d.any()} <= found.keys()
    for name in found:
        assert error(found[name], truth[name]) < 1e-5, name


def test_several_steps_of_a_program(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that a program takes in turn, some beyond the last position; the same bits every time."""
    monkeypatch.setattr(kernels, "TILE", 32)
    shape = (1, 11, 20, 31)
    given = arguments(shape, torch.float32, device, "channels_last", True)
    assert kernels._launch(given["pre"][:, :11])[2][1:] == (8, 2, 16)
    upstream = draw(shape, torch.float32, device, "channels_last", 4)
    found, truth = both(given, upstream, "silu", 0.2, twice=False)
    again = derivatives(ours("silu", 0.2), given, upstream, twice=False)
    for name in truth:
        assert error(found[name], truth[name]) < 1e-5, name
        assert torch.equal(found[name], again[name])


def test_only_what_is_asked_for_is_differentiated(device: torch.device) -> None:
    """Frozen weights get no gradient, and the others get theirs."""
    given = arguments(SHAPES[0], torch.float32, device, "channels_last", True)
    for once in (True, False):
        own = {name: t.detach().requires_grad_(name in ("pre", "residual_shift")) for name, t in given.items()}
        leaves = [t for t in own.values() if t.requires_grad]
        found = torch.autograd.grad(ours("silu", 0.2)(own).sum(), leaves, create_graph=not once)
        wide = {name: t.detach().double().requires_grad_(t.requires_grad) for name, t in own.items()}
        leaves = [t for t in wide.values() if t.requires_grad]
        truth = torch.autograd.grad(reference(wide, "silu", 0.2).sum(), leaves)
        for a, b in zip(found, truth, strict=True):
            assert error(a.detach(), b) < 1e-5


@pytest.mark.parametrize("output_slope", [1.0, 0.2])
def test_the_whole_operator(output_slope: float, device: torch.device) -> None:
    """With every gradient, by the kernels and by the definition in float64."""

    def draw_32(*shape: int) -> Tensor:
        return draw(shape, torch.float32, device, "channels_last" if len(shape) == 4 else "contiguous", sum(shape))

    inputs = [draw_32(2, 4, 5, 4)]
    for channels in (4, 3):
        inputs += [draw_32(6, channels, 3, 3), draw_32(6), draw_32(2, 3), draw_32(2, 3)]
    upstream, results = draw_32(2, 3, 10, 8), []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        own = [t.to(dtype).requires_grad_() for t in inputs]
        convs = ModulatedConv(*own[1:5]), ModulatedConv(*own[5:])
        y = modulated_gated_block(own[0], *convs, gain=GAIN, output_slope=output_slope, impl=impl)
        results.append([y, *torch.autograd.grad(y, own, upstream.to(dtype))])
    for found, truth in zip(*results, strict=True):
        assert found.shape == truth.shape and error(found, truth) < 1e-5


def test_empty(device: torch.device) -> None:
    given = arguments((0, 2, 3, 3), torch.float32, device, "contiguous", True)
    found = derivatives(ours("silu", 0.2), given, torch.zeros(0, 2, 3, 3, device=device), twice=False)
    assert found["y"].shape == (0, 2, 3, 3) and not found["dweight"].any() and not found["dbias"].any()


def test_torch_knows_the_operators(device: torch.device) -> None:
    from fastt2i.ops.gated_block.triton_ops import gated_block
    from fastt2i.ops.modulated_gated_conv.triton_ops import modulated_gate_backward

    for layout in ("contiguous", "channels_last"):
        given = arguments(SHAPES[0], torch.float32, device, layout, True)
        own = [t.clone().requires_grad_() for t in given.values()]
        for output_slope in (1.0, 0.2):
            torch.library.opcheck(gated_block, (*own, GAIN, "silu", 0.2, output_slope))
        dy = draw(SHAPES[0], torch.float32, device, layout)
        signs = kernels.forward(given["pre"], None, given["scale"], given["shift"], None, GAIN, "silu", 0.2, 0.2)[1]
        some = (given["pre"], given["bias"], given["scale"])
        torch.library.opcheck(modulated_gate_backward, (dy, signs, dy, *some, False, GAIN, "silu", 0.2, 0.2))


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    given = arguments(SHAPES[0], torch.float32, device, "channels_last", True)
    own = {name: t.detach().requires_grad_() for name, t in given.items()}
    run = ours("leaky_relu", 0.2)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    upstream = draw(SHAPES[0], torch.float32, device, "channels_last")
    found, expected = (torch.autograd.grad(f(own), list(own.values()), upstream) for f in (compiled, run))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
