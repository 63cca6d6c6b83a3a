"""Kernels of what stands behind a convolution against a float64 reference: values, first and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.kernels import leaky_shortcut as kernels
from fastt2i.kernels import partial_sums
from fastt2i.ops import leaky_conv2d
from fastt2i.ops.convolution import only_input_gradients
from fastt2i.ops.leaky_conv.functional import Shortcut
from tests.kernels.test_gate_kernel import BOUNDS, draw, error
from tests.kernels.test_large_offsets_kernel import far_apart

pytestmark = pytest.mark.usefixtures("poisoned")

#: (B, C, H, W), even sizes for the pooling; each has lanes that no element fills.
SHAPES = [(2, 3, 6, 4), (1, 1, 2, 2), (3, 24, 10, 6), (2, 70, 4, 2)]
GAIN = 0.75
Given = dict[str, Tensor]


def arguments(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: str, shortcut: bool) -> Given:
    made = {"pre": draw(shape, dtype, device, layout, 0), "bias": draw((shape[1],), dtype, device, "contiguous", 1)}
    if shortcut:
        made["shortcut"] = draw(shape, dtype, device, layout, 2)
        made["shortcut_bias"] = draw((shape[1],), dtype, device, "contiguous", 3)
    return made


def reference(given: Given, pool: bool) -> tuple[Tensor, ...]:
    y = F.leaky_relu(given["pre"] + given["bias"][:, None, None], 0.2)
    if "shortcut" in given:
        y = y + given["shortcut"] + given["shortcut_bias"][:, None, None]
    return (GAIN * y, F.avg_pool2d(GAIN * y, 2)) if pool else (GAIN * y,)


def ours(given: Given, pool: bool) -> tuple[Tensor, ...]:
    from fastt2i.ops.leaky_conv.triton_ops import leaky_shortcut

    some = [given.get(name) for name in ("pre", "bias", "shortcut", "shortcut_bias")]
    return leaky_shortcut(*some, GAIN, 0.2, pool)[: 2 if pool else 1]


def derivatives(
    run: Callable[[Given, bool], tuple[Tensor, ...]], given: Given, upstream: list[Tensor], twice: bool
) -> dict[str, Tensor]:
    """Results and gradients; where asked for, the gradients by `upstream` of a sum of squares of those, and theirs in
    turn, so that every operator is differentiated."""
    own = {name: t.detach().requires_grad_() for name, t in given.items()}
    upstream = [t.detach().requires_grad_() for t in upstream]
    outputs = run(own, len(upstream) == 2)
    first = torch.autograd.grad(outputs, list(own.values()), upstream, create_graph=twice)
    found = {f"y{n}": y for n, y in enumerate(outputs)} | {f"d{n}": d for n, d in zip(own, first, strict=True)}
    if twice:
        total = sum(d.square().sum() for d in first)
        second = torch.autograd.grad(total, upstream, create_graph=True)
        found |= {f"d2{n}": d for n, d in enumerate(second)}
        third = torch.autograd.grad(sum(d.square().sum() for d in second), upstream)
        found |= {f"d3{n}": d for n, d in enumerate(third)}
    return {name: tensor.detach() for name, tensor in found.items()}


def upstreams(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, layout: str, pool: bool
) -> list[Tensor]:
    pooled = (*shape[:2], shape[2] // 2, shape[3] // 2)
    return [draw(s, dtype, device, layout, 4 + n) for n, s in enumerate((shape, pooled)[: 2 if pool else 1])]


def compare(given: Given, upstream: list[Tensor], twice: bool, bound: float) -> None:
    wide = {name: t.double() for name, t in given.items()}
    found = derivatives(ours, given, upstream, twice)
    truth = derivatives(reference, wide, [t.double() for t in upstream], twice)
    assert found.keys() == truth.keys()
    for name in truth:
        assert found[name].shape == truth[name].shape and found[name].dtype == given["pre"].dtype
        assert error(found[name], truth[name]) < bound, name


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shortcut", "pool"), [(True, True), (False, False), (False, True), (True, False)])
def test_values_and_gradients(
    dtype: torch.dtype, layout: str, shortcut: bool, pool: bool, device: torch.device
) -> None:
    for shape in SHAPES if dtype == torch.float32 else SHAPES[:1]:
        upstream = upstreams(shape, dtype, device, layout, pool)
        compare(arguments(shape, dtype, device, layout, shortcut), upstream, False, BOUNDS[dtype])


@pytest.mark.parametrize("shortcut", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_second_derivatives(shortcut: bool, pool: bool, device: torch.device) -> None:
    upstream = upstreams(SHAPES[0], torch.float32, device, "channels_last", pool)
    compare(arguments(SHAPES[0], torch.float32, device, "channels_last", shortcut), upstream, True, 1e-5)


def test_sizes_without_a_pooling_may_be_odd(device: torch.device) -> None:
    shape = (2, 3, 5, 3)
    upstream = upstreams(shape, torch.float32, device, "contiguous", False)
    compare(arguments(shape, torch.float32, device, "contiguous", True), upstream, True, 1e-5)


def test_the_pooling_alone_has_a_gradient(device: torch.device) -> None:
    given = arguments(SHAPES[0], torch.float32, device, "channels_last", True)
    gradients = []
    for run, dtype in ((ours, torch.float32), (reference, torch.float64)):
        own = {name: t.detach().to(dtype).requires_grad_() for name, t in given.items()}
        gradients.append(torch.autograd.grad(run(own, True)[1].square().sum(), list(own.values())))
    for found, truth in zip(*gradients, strict=True):
        assert error(found, truth) < 1e-5


@pytest.mark.parametrize("dim", [0, 1, 3])
def test_offsets_that_32_bits_do_not_hold(dim: int, device: torch.device) -> None:
    given = {n: t.half() for n, t in arguments((3, 3, 2, 4), torch.float32, device, "contiguous", True).items()}
    upstream = upstreams((3, 3, 2, 4), torch.float16, device, "contiguous", True)
    near = derivatives(ours, given, upstream, False)
    if dim < 3:
        apart = {"pre": far_apart(given["pre"], dim), "shortcut": far_apart(given["shortcut"], dim)}
    else:  # positions, whose stride rows must fit
        apart = {"pre": far_apart(given["pre"].flatten(2), 2).unflatten(2, (2, 4))}
    found = derivatives(ours, given | apart, upstream, False)
    assert all(torch.equal(found[name], near[name]) for name in near)


def test_sums_of_many_programs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of partial sums, the last of which is not full; the same bits every time."""
    monkeypatch.setattr(kernels, "TILE", 8)
    monkeypatch.setattr(kernels, "SUMMED", 3)
    given = arguments((1, 2, 12, 14), torch.float32, device, "channels_last", True)
    upstream = upstreams((1, 2, 12, 14), torch.float32, device, "channels_last", True)
    compare(given, upstream, False, 1e-5)
    found, again = (derivatives(ours, given, upstream, False) for _ in range(2))
    assert all(torch.equal(found[name], again[name]) for name in found)
    partial = torch.randn(7, 70, device=device)
    sums = torch.empty(3, 40, device=device), torch.empty(3, 30, device=device)
    partial_sums.sum_groups(partial, 3, *sums)
    exact = torch.stack([part.double().sum(dim=0) for part in partial.split(3)])
    assert error(torch.cat(sums, dim=1), exact) < 1e-6


def test_the_whole_operator(device: torch.device) -> None:
    """With every gradient and, as in a gradient penalty, the gradients of the gradient by x."""
    shapes = [(2, 4, 6, 4), (3, 4, 3, 3), (3,), (2, 5, 6, 4), (3, 5, 1, 1), (3,)]
    found = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        own = [
            draw(s, torch.float32, device, "channels_last", n).to(dtype).requires_grad_() for n, s in enumerate(shapes)
        ]
        y, pooled = leaky_conv2d(*own[:3], padding=1, shortcut=Shortcut(*own[3:]), gain=GAIN, pool=True, impl=impl)
        total = y.square().sum() + pooled.square().sum()
        first = torch.autograd.grad(total, own, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), own)
        found.append([y, pooled, *first, *second])
    for ours_, truth in zip(*found, strict=True):
        assert ours_.shape == truth.shape and error(ours_, truth) < 1e-5


def test_a_penalty_on_two_layers(device: torch.device) -> None:
    """Gradients by all parameters of a function of the input's gradient, beside which those were not computed."""
    shapes = [(2, 4, 6, 4), (3, 4, 3, 3), (3,), (3, 3, 4, 4), (3,), (3, 3, 1, 1), (3,)]
    found = []
    for impl, dtype in (("triton", torch.float32), ("reference", torch.float64)):
        own = [
            draw(s, torch.float32, device, "channels_last", n).to(dtype).requires_grad_() for n, s in enumerate(shapes)
        ]
        y, pooled = leaky_conv2d(*own[:3], padding=1, pool=True, impl=impl)
        beside = Shortcut(pooled, *own[5:])
        z, _ = leaky_conv2d(y, *own[3:5], stride=2, padding=1, shortcut=beside, gain=GAIN, impl=impl)
        with only_input_gradients():
            (gradient,) = torch.autograd.grad(z.square().sum(), own[0], create_graph=True)
        found.append([gradient, *torch.autograd.grad(gradient.square().sum(), own)])
    for ours_, truth in zip(*found, strict=True):
        assert ours_.shape == truth.shape and error(ours_, truth) < 1e-5


def test_empty(device: torch.device) -> None:
    given = arguments((0, 2, 4, 4), torch.float32, device, "contiguous", True)
    found = derivatives(ours, given, upstreams((0, 2, 4, 4), torch.float32, device, "contiguous", True), False)
    assert found["y1"].shape == (0, 2, 2, 2) and not found["dbias"].any() and not found["dshortcut_bias"].any()


def test_torch_knows_the_operators(device: torch.device) -> None:
    from fastt2i.ops.leaky_conv.triton_ops import leaky_shortcut, leaky_shortcut_backward, leaky_shortcut_tangent

    given = [t.requires_grad_() for t in arguments(SHAPES[0], torch.float32, device, "channels_last", True).values()]
    upstream = [t.requires_grad_() for t in upstreams(SHAPES[0], torch.float32, device, "channels_last", True)]
    signs = leaky_shortcut(*given, GAIN, 0.2, True)[2]
    torch.library.opcheck(leaky_shortcut, (*given, GAIN, 0.2, True))
    torch.library.opcheck(leaky_shortcut, (given[0], given[1], None, None, GAIN, 0.2, False))
    torch.library.opcheck(leaky_shortcut_backward, (*upstream, signs, True, True, GAIN, 0.2))
    torch.library.opcheck(leaky_shortcut_backward, (upstream[0], None, signs, False, False, GAIN, 0.2))
    torch.library.opcheck(leaky_shortcut_tangent, (*given, signs, GAIN, 0.2, True))


def test_compiles_without_a_graph_break(device: torch.device) -> None:
    given = arguments(SHAPES[0], torch.float32, device, "channels_last", True)
    own = {name: t.detach().requires_grad_() for name, t in given.items()}
    compiled = torch.compile(lambda g: ours(g, True), fullgraph=True, backend="aot_eager")
    upstream = upstreams(SHAPES[0], torch.float32, device, "channels_last", True)
    both = [torch.autograd.grad(f, list(own.values()), upstream) for f in (compiled(own), ours(own, True))]
    for found, expected in zip(*both, strict=True):
        torch.testing.assert_close(found, expected)
