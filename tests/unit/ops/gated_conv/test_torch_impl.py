"""The forms in PyTorch: equal to the definition, differentiable twice, and lean in what they keep for the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastt2i.ops.dispatch import registry
from fastt2i.ops.gate.reference import ACTIVATIONS
from fastt2i.ops.gated_conv.torch_impl import transposed_weight_backward

UPSAMPLING = ("torch/phases", "torch/transposed", "torch/plain")
#: Rounding of the inputs is no form's: they are drawn in the dtype. A few roundings of the dtype, added at random.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CONVOLUTION = ((1, 1), (1, 1), (1, 1), 1)


def form(op: str, name: str) -> Callable[..., Tensor]:
    return registry._REGISTRY[op].implementations[name].run


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def parameters(in_channels: int, out_channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    weight = draw(2 * out_channels, in_channels, 3, 3, seed=1) / (3 * in_channels**0.5)
    return weight.to(dtype), draw(2 * out_channels, seed=2, dtype=dtype)


def all_results(run: Callable[..., Tensor], *inputs: Tensor, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The result, its gradients, and the gradients of a fixed mixture of these; what is drawn is rounded to dtype."""
    inputs = tuple(t.detach().requires_grad_() for t in inputs)
    y = run(*inputs)
    first = torch.autograd.grad(y, inputs, draw(*y.shape, seed=5, dtype=dtype).to(y.dtype), create_graph=True)
    weights = [draw(*g.shape, seed=6, dtype=dtype).to(g.dtype) for g in first]
    return [y, *first, *torch.autograd.grad(first, inputs, weights)]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", UPSAMPLING)
def test_upsampling_in_every_precision(name: str, dtype: torch.dtype) -> None:
    """With a smooth activation: at a kink, rounding may choose the other side's slope."""
    inputs = [draw(2, 7, 9, 5, dtype=dtype), *parameters(7, 5, dtype)]
    ours = all_results(lambda *t: form("upsample_gated_conv2d", name)(*t, "silu", 0.2), *inputs, dtype=dtype)
    wide = [t.double() for t in inputs]
    truth = all_results(lambda *t: form("upsample_gated_conv2d", "reference")(*t, "silu", 0.2), *wide, dtype=dtype)
    for place, (a, b) in enumerate(zip(ours, truth, strict=True)):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= BOUNDS[dtype] * b.norm(), place


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        ((1, 1), (1, 1), (1, 1), 1),
        ((2, 3), (1, 0), (1, 1), 1),
        ((1, 1), (2, 3), (2, 3), 1),
        ((2, 1), (0, 1), (1, 2), 3),
    ],
)
def test_a_gated_convolution_in_every_precision(
    stride: Any, padding: Any, dilation: Any, groups: int, dtype: torch.dtype
) -> None:
    """Of four images, which torch's own second derivatives take for channels."""
    x, (weight, bias) = draw(4, 6, 9, 8, dtype=dtype), parameters(6 // groups, 6, dtype)
    settings = (stride, padding, dilation, groups, "silu", 0.2)
    ours = all_results(lambda *t: form("gated_conv2d", "torch")(*t, *settings), x, weight, bias, dtype=dtype)
    wide = [t.double() for t in (x, weight, bias)]
    truth = all_results(lambda *t: form("gated_conv2d", "reference")(*t, *settings), *wide, dtype=dtype)
    for place, (a, b) in enumerate(zip(ours, truth, strict=True)):
        assert a.dtype == dtype
        assert (a.double() - b).norm() <= BOUNDS[dtype] * b.norm(), place


@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    activation=st.sampled_from(ACTIVATIONS),
    slope=st.sampled_from([0.2, 0.0, -0.5]),
    name=st.sampled_from(UPSAMPLING),
)
def test_every_form_of_upsampling_is_the_definition(
    batch: int, channels: tuple[int, int], size: tuple[int, int], activation: str, slope: float, name: str
) -> None:
    inputs = draw(batch, channels[0], *size), *parameters(*channels)
    ours, truth = (
        all_results(lambda *t, n=n: form("upsample_gated_conv2d", n)(*t, activation, slope), *inputs)
        for n in (name, "reference")
    )
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def kept(run: Callable[..., Tensor], x: Tensor, *arguments: object) -> int:
    """Bytes of a batch that a call keeps for its backward, each storage counted once."""
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        if len(tensor) == len(x):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = run(x, *arguments)  # alive until here, so that no address is used twice
    del y
    return sum(storages.values())


@pytest.mark.parametrize("activation", ["leaky_relu", "identity", "silu", "tanh", "elu", "relu"])
def test_what_is_kept_for_the_backward(activation: str) -> None:
    """x and two halves, 3C a pixel against 5C; upsampling a quarter of an x, 2.25C against 5C. SiLU keeps as little."""
    channels, x = 16, draw(4, 16, 32, 32, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weight, bias = (torch.nn.Parameter(t) for t in parameters(channels, channels, torch.float32))
    convolution = (weight, bias, *CONVOLUTION, activation, 0.2)
    upsampling = (weight, bias, activation, 0.2)
    plain = kept(form("gated_conv2d", "reference"), x, *convolution)
    assert kept(form("gated_conv2d", "torch"), x, *convolution) == 3 * x.nbytes
    upsampled = kept(form("upsample_gated_conv2d", "reference"), x, *upsampling)
    for name in ("torch/phases", "torch/transposed"):
        assert kept(form("upsample_gated_conv2d", name), x, *upsampling) == 9 * x.nbytes, name
    if activation in ("leaky_relu", "elu", "silu"):  # the others keep less in the definition, too
        assert plain >= 1.6 * 3 * x.nbytes
        assert upsampled >= 2.1 * 9 * x.nbytes


class Recorded(TorchDispatchMode):
    """The names of all operators that torch runs inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["reference", *UPSAMPLING])
def test_nothing_travels_between_host_and_device(name: str) -> None:
    """A table that is brought to a GPU, or a value that is read from it, is what no CUDA graph can capture."""
    x, (weight, bias) = draw(2, 3, 4, 5), parameters(3, 4)
    with Recorded() as recorded:
        all_results(lambda *t: form("upsample_gated_conv2d", name)(*t, "leaky_relu", 0.2), x, weight, bias)
        transposed_weight_backward(draw(3, 8, 4, 4))
    assert "aten::convolution" in recorded.names
    assert not recorded.names & {"aten::lift_fresh", "aten::_local_scalar_dense"}
