"""The gated convolutions on Triton against a float64 reference: values and both derivatives, every tile, every tail,
with unwritten lanes showing as NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fastt2i.kernels.tiles import CONFIGS
from fastt2i.ops import gated_conv2d, upsample_gated_conv2d
from fastt2i.ops.dispatch import registry
from fastt2i.ops.dispatch.correctness import BOUNDS, relative_error
from fastt2i.ops.gate.reference import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("poisoned")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TILES = tuple(f"triton/{config.name}" for config in CONFIGS)
SMALL = "triton/64x32x32w4s4"
PLAIN = ((1, 1), (0, 0), (1, 1), 1)
#: Kernel, convolution, image: what the first four numbers stand for is in `reference.gated_conv2d`.
CONVOLUTIONS = [
    (3, ((1, 1), (1, 1), (1, 1), 1), (9, 7)),
    (1, PLAIN, (9, 7)),
    (3, ((2, 2), (1, 1), (1, 1), 1), (9, 8)),
    (1, ((2, 2), (0, 0), (1, 1), 1), (9, 8)),
    (3, ((2, 1), (1, 2), (2, 1), 1), (10, 7)),
    (3, ((1, 1), (4, 4), (1, 1), 1), (1, 2)),
    (3, PLAIN, (3, 3)),
]
#: Batch, channels in and out.
SIZES = [(2, 7, 5), (1, 1, 1), (3, 32, 16), (1, 40, 33)]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """float32 is not TF32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def draw(*shape: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def parameters(kernel: int, sizes: tuple[int, int, int], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    _, in_channels, channels = sizes
    weight = draw(2 * channels, in_channels, kernel, kernel, device=device, dtype=torch.float32, seed=1)
    weight = (weight / (kernel * in_channels**0.5)).to(dtype)
    return [weight, draw(2 * channels, device=device, dtype=dtype, seed=2)]


def form(op: str, name: str) -> Callable[..., Tensor]:
    return registry._REGISTRY[op].implementations[name].run


def all_results(run: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The result, its gradients, and the gradients of a fixed mixture of these; what is drawn is rounded to dtype."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    y = run(*inputs)
    upstream = draw(*y.shape, device=y.device, dtype=dtype, seed=5).to(y.dtype)
    first = torch.autograd.grad(y, inputs, upstream, create_graph=True)
    weights = [draw(*g.shape, device=y.device, dtype=dtype, seed=6).to(g.dtype) for g in first]
    return [y, *first, *torch.autograd.grad(first, inputs, weights)]


def compare(op: str, name: str, inputs: list[Tensor], *arguments: object) -> None:
    """Values and derivatives of a form, whose activation is a smooth one: at a kink, rounding may choose its side."""
    dtype = inputs[0].dtype
    ours, own = (all_results(lambda *t: form(op, f)(*t, *arguments), inputs, dtype) for f in (name, "reference"))  # noqa: B023
    truth = all_results(lambda *t: form(op, "reference")(*t, *arguments), [t.double() for t in inputs], dtype)
    for place, (a, b, c) in enumerate(zip(ours, truth, own, strict=True)):
        assert a.dtype == dtype and a.shape == b.shape
        # Rounding of inputs is not the kernel's: they are drawn in the dtype. What is summed is rounded once or twice,
        # a second derivative at each of its steps, as the definition's own is.
        assert relative_error(a, b) <= max(BOUNDS[dtype], 2 * relative_error(c, b)), (name, place)
    with torch.no_grad():  # pre is not written, and not rounded either
        alone = form(op, name)(*inputs, *arguments)
    assert (alone.double() - truth[0]).norm() <= BOUNDS[dtype] * truth[0].norm(), name


def layout(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", [SMALL, "triton/conv+gate"])
def test_every_convolution(name: str, channels_last: bool, dtype: torch.dtype, device: torch.device) -> None:
    for kernel, convolution, size in CONVOLUTIONS:
        sizes = SIZES[0]
        x = layout(draw(sizes[0], sizes[1], *size, device=device, dtype=dtype), channels_last)
        compare(
            "gated_conv2d", name, [x, *parameters(kernel, sizes, device, dtype)], *convolution, "silu", 0.2
        )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [SMALL, "triton/transposed+gate"])
def test_upsampling_of_every_size(name: str, dtype: torch.dtype, device: torch.device) -> None:
    for sizes in SIZES:
        for size in ((1, 1), (5, 3)):
            x = draw(sizes[0], sizes[1], *size, device=device, dtype=dtype)
            if dtype != torch.float32 and x.numel() < 16:
                continue  # a gradient of one number may be a small difference of large ones
            compare("upsample_gated_conv2d", name, [x, *parameters(3, sizes, device, dtype)], "silu", 0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TILES)
def test_every_tile_and_its_tails(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """More positions than a tile has and channels on both sides of a multiple, so that every edge is crossed."""
    weight = torch.Size((32, 16, 3, 3))
    call = registry.Call("", device, dtype, (torch.Size((3, 16, 11, 9)), weight), (1,), "channels_last", True)
    if reason := registry._REGISTRY["gated_conv2d"].implementations[name].unavailable(call):
        pytest.skip(reason)  # on a GPU whose shared memory is too small for it; the interpreter has no limit
    for sizes, size in (((3, 16, 16), (11, 9)), ((1, 80, 48), (9, 31))):
        x = layout(draw(sizes[0], sizes[1], *size, device=device, dtype=dtype), True)
        inputs = [x, *parameters(3, sizes, device, dtype)]
        compare("gated_conv2d", name, inputs, (1, 1), (1, 1), (1, 1), 1, "silu", 0.2)
        small = [x[:, :, :6, :7], *inputs[1:]]
        compare("upsample_gated_conv2d", name, small, "silu", 0.2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_with_and_without_bias(activation: str, device: torch.device) -> None:
    sizes = (2, 6, 4)
    x = draw(2, 6, 5, 4, device=device, dtype=torch.float32)
    weight, bias = parameters(3, sizes, device, torch.float32)
    for given in (bias, None):
        for name in (SMALL, "triton/conv+gate"):
            ours = form("gated_conv2d", name)(x, weight, given, (1, 1), (1, 1), (1, 1), 1, activation, 0.2)
            wide = (x.double(), weight.double(), None if given is None else given.double())
            truth = gated_conv2d(*wide, padding=1, activation=activation, impl="reference")
            assert (ours.double() - truth).norm() <= 1e-5 * truth.norm(), (name, given is None)


def test_groups_and_uneven_padding(device: torch.device) -> None:
    x = draw(2, 8, 6, 5, device=device, dtype=torch.float32)
    weight = draw(12, 4, 2, 3, device=device, dtype=torch.float32, seed=1) / 5
    ours = gated_conv2d(x, weight, padding="same", groups=2, impl="triton")
    truth = gated_conv2d(x.double(), weight.double(), padding="same", groups=2, impl="reference")
    assert ours.shape == (2, 6, 6, 5)
    assert (ours.double() - truth).norm() <= 1e-5 * truth.norm()
    reasons = registry._REGISTRY["gated_conv2d"].implementations[SMALL].unavailable
    call = registry.make_call("gated_conv2d", x, weight, settings=(1, 1, 0, 0, 1, 1, 2), num_key_tensors=2)
    assert reasons(call) == "one kernel does no groups, and there are 2"


def test_layouts_are_kept_and_views_are_read_as_they_are(device: torch.device) -> None:
    wide = draw(2, 12, 9, 20, device=device, dtype=torch.float32)
    weight, bias = parameters(3, (2, 6, 4), device, torch.float32)
    x = wide[:, ::2, :, ::2]
    for name in TILES[-1:]:
        ours = form("gated_conv2d", name)(x, weight, bias, (1, 1), (1, 1), (1, 1), 1, "silu", 0.2)
        torch.testing.assert_close(ours, gated_conv2d(x, weight, bias, padding=1, activation="silu", impl="reference"))
        dense = x.contiguous(memory_format=torch.channels_last)
        y = form("upsample_gated_conv2d", name)(dense, weight, bias, "silu", 0.2)
        assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", [gated_conv2d, upsample_gated_conv2d])
def test_what_is_kept_for_the_backward(op: Callable[..., Tensor], device: torch.device) -> None:
    """x and pre alone: 3C a pixel, against 5C of the definition; upsampling 2.25C."""
    x = draw(4, 8, 8, 8, device=device, dtype=torch.float32).requires_grad_()
    weight, bias = (torch.nn.Parameter(t) for t in parameters(3, (4, 8, 8), device, torch.float32))
    sizes = {}
    for impl in ("triton", "reference"):
        kept = {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            if tensor.ndim == 4 and len(tensor) == len(x):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        options = {"padding": 1} if op is gated_conv2d else {}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = op(x, weight, bias, impl=impl, **options)
        del y
        sizes[impl] = sum(kept.values())
    assert sizes["triton"] == (3 if op is gated_conv2d else 9) * x.nbytes
    assert sizes["reference"] >= (1.6 if op is gated_conv2d else 2.1) * sizes["triton"]


def test_empty_batches(device: torch.device) -> None:
    weight, bias = parameters(3, (0, 3, 4), device, torch.float32)
    weight.requires_grad_()
    for name in ("conv+gate", "64x32x32w4s4"):
        x = torch.zeros(0, 3, 8, 8, device=device, requires_grad=True)
        y = form("gated_conv2d", f"triton/{name}")(x, weight, bias, (1, 1), (1, 1), (1, 1), 1, "silu", 0.2)
        y.sum().backward()
        assert y.shape == (0, 4, 8, 8) and x.grad is not None and weight.grad is not None
        assert weight.grad.abs().sum() == 0
    assert upsample_gated_conv2d(x, weight, bias, impl="triton").shape == (0, 4, 16, 16)


def test_torch_knows_the_operators(device: torch.device) -> None:
    from fastt2i.ops.gated_conv import triton_ops as ops

    x = draw(2, 3, 5, 4, device=device, dtype=torch.float32).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters(3, (2, 3, 4), device, torch.float32))
    for name in ("conv+gate", "64x32x32w4s4"):
        convolution = ([1, 1], [1, 1], [1, 1], 1, "silu", 0.2, name)
        torch.library.opcheck(ops.gated_conv2d, (x, weight, bias, *convolution, True))
        torch.library.opcheck(ops.gated_conv2d, (x.detach(), weight.detach(), None, *convolution, False))
        torch.library.opcheck(ops.upsample_gated_conv2d, (x, weight, bias, "silu", 0.2, name, True))


@pytest.mark.parametrize("op", [gated_conv2d, upsample_gated_conv2d])
def test_compiles_without_a_graph_break(op: Callable[..., Tensor], device: torch.device) -> None:
    x = draw(2, 3, 8, 8, device=device, dtype=torch.float32)
    weight, bias = (t.requires_grad_() for t in parameters(3, (2, 3, 4), device, torch.float32))
    compiled = torch.compile(lambda *t: op(*t, impl="triton"), fullgraph=True, backend="aot_eager")
    y, expected = compiled(x, weight, bias), op(x, weight, bias, impl="triton")
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), (weight, bias)), torch.autograd.grad(expected.sum(), (weight, bias))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, device: torch.device) -> None:
    x = draw(2, 3, 8, 8, device=device, dtype=torch.float32)
    weight, bias = (t.requires_grad_() for t in parameters(3, (2, 3, 4), device, torch.float32))
    with torch.autocast(device.type, dtype=dtype):
        y = upsample_gated_conv2d(x, weight, bias, impl="triton")
        assert y.dtype == dtype
        assert torch.autograd.grad(y.float().sum(), weight)[0].dtype == torch.float32


def test_two_runs_have_the_same_bits(device: torch.device) -> None:
    x = draw(3, 16, 20, 20, device=device, dtype=torch.float32)
    inputs = [x, *parameters(3, (3, 16, 8), device, torch.float32)]
    convolution = ((1, 1), (1, 1), (1, 1), 1, "silu", 0.2)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        one, two = (
            all_results(lambda *t: form("gated_conv2d", SMALL)(*t, *convolution), inputs, torch.float32)
            for _ in range(2)
        )
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_operations_are_counted(device: torch.device) -> None:
    """As many as of the convolution, and four ninths of them where it is of an upsampled image."""
    import fastt2i.ops.flops  # noqa: F401

    x = draw(2, 3, 8, 8, device=device, dtype=torch.float32).requires_grad_()
    weight, bias = (t.requires_grad_() for t in parameters(3, (2, 3, 4), device, torch.float32))

    def counts(op: Callable[..., Tensor], impl: str, **options: object) -> tuple[int, int]:
        with FlopCounterMode(display=False) as forward:
            y = op(x, weight, bias, impl=impl, **options)
        with FlopCounterMode(display=False) as backward:
            y.sum().backward()
        return forward.get_total_flops(), backward.get_total_flops()

    assert counts(gated_conv2d, "triton", padding=1) == counts(gated_conv2d, "reference", padding=1)
    ours, reference = (counts(upsample_gated_conv2d, impl)[0] for impl in ("triton", "reference"))
    assert 9 * ours == 4 * reference > 0
