"""The modulated gate's kernels against a float64 reference: values and both derivatives, in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastt2i.kernels import modulated_gate as kernels
from fastt2i.ops import modulated_gated_conv2d, modulated_upsample_gated_conv2d
from fastt2i.ops.gate.reference import ACTIVATIONS
from tests.kernels.test_gate_kernel import BOUNDS, draw, error
from tests.kernels.test_large_offsets_kernel import far_apart

pytestmark = pytest.mark.usefixtures("poisoned")

#: (B, C, H, W) of the output; each has lanes that no element fills.
SHAPES = [(2, 3, 5, 3), (1, 1, 1, 1), (3, 24, 9, 7), (2, 70, 3, 3)]
#: Each activation in float32, and each dtype with one.
CASES = [(name, torch.float32) for name in ACTIVATIONS] + [("leaky_relu", d) for d in BOUNDS if d != torch.float32]
GAIN = 0.75


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: str, biased: bool, residual: bool
) -> dict[str, Tensor | None]:
    """Of `modulated_gate`, by name."""
    batch, channels, *size = shape
    chunked = draw((batch, 4 * channels), dtype, device, "contiguous", 2).chunk(4, dim=1)  # as the networks' are
    return {
        "pre": draw((batch, 2 * channels, *size), dtype, device, layout, 0),
        "bias": draw((2 * channels,), dtype, device, "contiguous", 1) if biased else None,
        "scale": chunked[1],
        "shift": chunked[2],
        "residual": draw(shape, dtype, device, layout, 3) if residual else None,
    }


def reference(given: dict[str, Tensor | None], activation: str) -> Tensor:
    pre, bias, scale, shift, residual = given.values()
    f, g = (pre if bias is None else pre + bias[:, None, None]).chunk(2, dim=1)
    from fastt2i.ops.gate.reference import activate

    y = scale[:, :, None, None] * (activate(f, activation, 0.2) * torch.sigmoid(g)) + shift[:, :, None, None]
    return GAIN * (y if residual is None else residual + y)


def derivatives(run: object, given: dict[str, Tensor | None], upstream: Tensor, twice: bool) -> dict[str, Tensor]:
    """y, its gradients, and where asked for those of a mean of their squares."""
    own = {name: None if t is None else t.detach().requires_grad_() for name, t in given.items()}
    upstream = upstream.detach().requires_grad_()
    leaves = {name: t for name, t in own.items() if t is not None}
    y = run(own)
    first = torch.autograd.grad(y, list(leaves.values()), upstream, create_graph=twice)
    found = {"y": y} | {f"d{name}": d for name, d in zip(leaves, first, strict=True)}
    if twice:
        total = sum(d.to(torch.promote_types(d.dtype, torch.float32)).square().sum() for d in first)
        wanted = {"upstream": upstream, **leaves}
        second = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
        found |= {f"d2{name}": d for name, d in zip(wanted, second, strict=True) if d is not None}
    return {name: tensor.detach() for name, tensor in found.items()}


def ours(activation: str) -> object:
    from fastt2i.ops.modulated_gated_conv.triton_ops import modulated_gate

    return lambda given: modulated_gate(*given.values(), GAIN, activation, 0.2)


@pytest.mark.parametrize(("activation", "dtype"), CASES)
@pytest.mark.parametrize(
    ("layout", "biased", "residual"), [("channels_last", True, True), ("contiguous", False, False)]
)
def test_values_and_gradients(
    activation: str, dtype: torch.dtype, layout: str, biased: bool, residual: bool, device: torch.device
) -> None:
    for shape in SHAPES if activation == "leaky_relu" else SHAPES[:1]:
        given = arguments(shape, dtype, device, layout, biased, residual)
        upstream = draw(shape, dtype, device, layout, 4)
        wide = {name: None if t is None else t.double() for name, t in given.items()}
        found = derivatives(ours(activation), given, upstream, twice=False)
        truth = derivatives(lambda g: reference(g, activation), wide, upstream.double(), twice=False)
        assert found.keys() == truth.keys()
        for name in truth:
            assert found[name].dtype == dtype and found[name].shape == truth[name].shape
            assert error(found[name], truth[name]) < BOUNDS[dtype], (name, shape)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("residual", [True, False])
def test_second_derivatives(activation: str, residual: bool, device: torch.device) -> None:
    given = arguments(SHAPES[0], torch.float32, device, "channels_last", True, residual)
    upstream = draw(SHAPES[0], torch.float32, device, "channels_last", 4)
    wide = {name: None if t is None else t.double() for name, t in given.items()}
    found = derivatives(ours(activation), given, upstream, twice=True)
    truth = derivatives(lambda g: reference(g, activation), wide, upstream.double(), twice=True)
    assert {name for name, d in truth.items() if d.any()} <= found.keys()
    for name in found:
        assert error(found[name], truth[name]) < 1e-5, name


def test_several_steps_of_a_program(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles that a program takes in turn, some beyond the last position; the same bits every time."""
    monkeypatch.setattr(kernels, "TILE", 16)
    shape = (2, 2, 20, 31)
    given = arguments(shape, torch.float32, device, "channels_last", True, True)
    assert kernels._launch(given["residual"])[2][1:] == (8, 2, 8)
    upstream = draw(shape, torch.float32, device, "channels_last", 4)
    wide = {name: None if t is None else t.double() for name, t in given.items()}
    found, again = (derivatives(ours("silu"), given, upstream, twice=False) for _ in range(2))
    truth = derivatives(lambda g: reference(g, "silu"), wide, upstream.double(), twice=False)
    for name in truth:
        assert error(found[name], truth[name]) < 1e-6, name
        assert torch.equal(found[name], again[name])


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_offsets_that_32_bits_do_not_hold(dim: int, device: torch.device) -> None:
    given = arguments((3, 2, 2, 4), torch.float16, device, "contiguous", True, True)
    upstream = draw((3, 2, 2, 4), torch.float16, device, "contiguous", 4)
    near = derivatives(ours("silu"), given, upstream, twice=False)
    apart = {name: far_apart(given[name].flatten(2), dim).unflatten(2, (2, 4)) for name in ("pre", "residual")}
    found = derivatives(ours("silu"), given | apart, upstream, twice=False)
    assert all(torch.equal(found[name], near[name]) for name in near)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("op", [modulated_gated_conv2d, modulated_upsample_gated_conv2d])
def test_convolutions(op: object, residual: bool, device: torch.device) -> None:
    """The whole operator with every gradient, by the kernels and by the definition in float64."""
    up = op is modulated_upsample_gated_conv2d
    shape = (2, 3, 10, 8) if up else (2, 3, 5, 4)
    inputs = {
        "x": draw((2, 4, 5, 4), torch.float32, device, "channels_last", 1),
        "weight": draw((6, 4, 3, 3), torch.float32, device, "contiguous", 2),
        "bias": draw((6,), torch.float32, device, "contiguous", 3),
        "scale": draw((2, 3), torch.float32, device, "contiguous", 4),
        "shift": draw((2, 3), torch.float32, device, "contiguous", 5),
    } | ({"residual": draw(shape, torch.float32, device, "channels_last", 6)} if residual else {})
    upstream = draw(shape, torch.float32, device, "channels_last", 7)
    results = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        own = {name: t.to(dtype).requires_grad_() for name, t in inputs.items()}
        y = op(**own, gain=GAIN, impl=impl, **({} if up else {"padding": 1}))
        results.append([y, *torch.autograd.grad(y, list(own.values()), upstream.to(dtype))])
    for found, truth in zip(*results, strict=True):
        assert found.shape == truth.shape and error(found, truth) < 1e-5


def test_empty(device: torch.device) -> None:
    given = arguments((0, 2, 3, 3), torch.float32, device, "contiguous", True, True)
    found = derivatives(ours("silu"), given, torch.zeros(0, 2, 3, 3, device=device), twice=False)
    assert found["y"].shape == (0, 2, 3, 3) and not found["dbias"].any()


def test_torch_knows_the_operators(device: torch.device) -> None:
    from fastt2i.ops.modulated_gated_conv.triton_ops import modulated_gate, modulated_gate_backward

    for layout in ("contiguous", "channels_last"):
        given = arguments(SHAPES[0], torch.float32, device, layout, True, True)
        own = [t.clone().requires_grad_() for t in given.values()]
        torch.library.opcheck(modulated_gate, (*own, GAIN, "silu", 0.2))
        dy = draw(SHAPES[0], torch.float32, device, layout)
        some = (given["pre"], given["bias"], given["scale"])
        for has_residual in (True, False):
            torch.library.opcheck(
                modulated_gate_backward, (dy, None, None, *some, has_residual, GAIN, "silu", 0.2, 1.0)
            )


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    given = arguments(SHAPES[0], torch.float32, device, "channels_last", True, True)
    own = {name: t.detach().requires_grad_() for name, t in given.items()}
    run = ours("leaky_relu")
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    upstream = draw(SHAPES[0], torch.float32, device, "channels_last")
    both = [torch.autograd.grad(f(own), list(own.values()), upstream) for f in (compiled, run)]
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected)
