"""Gated convolutions: their definition, every implementation against it in float64, derivatives, edges, mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastt2i.ops import gate, gated_conv2d, upsample_gated_conv2d
from fastt2i.ops.dispatch import registry
from fastt2i.ops.gate.reference import ACTIVATIONS


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def convolution(in_channels: int, out_channels: int, kernel: int = 3) -> tuple[Tensor, Tensor]:
    return randn(2 * out_channels, in_channels, kernel, kernel, seed=1) / kernel, randn(2 * out_channels, seed=2)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": (2, 0), "dilation": (2, 1)},
        {"groups": 2},
        {"padding": "same"},
        {"stride": (1, 3)},
    ],
)
def test_a_gated_convolution_is_two_convolutions(options: dict[str, object]) -> None:
    x = randn(2, 4, 9, 7)
    groups = options.get("groups", 1)
    weight, bias = convolution(4 // groups, 5 if groups == 1 else 4)
    half = len(bias) // 2
    y = gated_conv2d(x, weight, bias, **options)
    if groups == 1:
        feature, gate_half = (
            F.conv2d(x, weight[:half], bias[:half], **options),
            F.conv2d(x, weight[half:], bias[half:], **options),
        )
    else:  # the first group makes the feature half, from the first half of the channels
        feature, gate_half = (
            F.conv2d(x[:, :2], weight[:half], bias[:half]),
            F.conv2d(x[:, 2:], weight[half:], bias[half:]),
        )
    torch.testing.assert_close(y, F.leaky_relu(feature, 0.2) * gate_half.sigmoid())


@pytest.mark.parametrize("impl", ["reference", None])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8)])
def test_upsampling_is_interpolate_then_convolve(impl: str | None, activation: str, size: tuple[int, int]) -> None:
    x = randn(2, 3, *size)
    weight, bias = convolution(3, 4)
    y = upsample_gated_conv2d(x, weight, bias, activation=activation, impl=impl)
    upsampled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(y, gated_conv2d(upsampled, weight, bias, padding=1, activation=activation))
    without = upsample_gated_conv2d(x, weight, activation=activation, impl=impl)
    torch.testing.assert_close(without, gated_conv2d(upsampled, weight, padding=1, activation=activation))


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_upsampling_differentiates_twice(impl: str, activation: str) -> None:
    inputs = [t.requires_grad_() for t in (randn(1, 2, 2, 3), *convolution(2, 2))]

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return upsample_gated_conv2d(x, weight, bias, activation=activation, impl=impl)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_convolutions_differentiate_twice(activation: str) -> None:
    inputs = [t.requires_grad_() for t in (randn(1, 2, 4, 3), *convolution(2, 2))]

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return gated_conv2d(x, weight, bias, padding=1, activation=activation)

    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_upsampling_and_its_gradients_in_every_precision(impl: str, dtype: torch.dtype, bound: float) -> None:
    """Bounds: a few units of each type's rounding, on inputs of unit variance.

    The activation is a smooth one: at a kink, rounding may choose the other side's slope.
    """
    exact = [randn(2, 7, 9, 5), randn(10, 7, 3, 3, seed=1) / 8, randn(10, seed=2)]
    rough = [t.to(dtype).requires_grad_() for t in exact]
    exact = [t.detach().double().requires_grad_() for t in rough]
    ours, truth = (
        upsample_gated_conv2d(*rough, activation="silu", impl=impl),
        upsample_gated_conv2d(*exact, activation="silu", impl="reference"),
    )
    assert ours.dtype == dtype
    upstream = randn(*truth.shape, seed=3)
    ours_all = [ours, *torch.autograd.grad(ours, rough, upstream.to(dtype))]
    truth_all = [truth, *torch.autograd.grad(truth, exact, upstream)]
    for name, a, b in zip(("y", "x", "weight", "bias"), ours_all, truth_all, strict=True):
        assert (a.double() - b).norm() <= bound * b.norm(), name


@pytest.mark.parametrize(
    ("dtype", "training", "name"),
    [("bfloat16", True, "torch"), ("bfloat16", False, "reference"), ("float32", True, "reference")],
)
def test_a_processor_that_multiplies_bf16_never_takes_torchs_second_derivatives(
    monkeypatch: pytest.MonkeyPatch, dtype: str, training: bool, name: str
) -> None:
    monkeypatch.setattr("fastt2i.ops.gated_conv.implementations.multiplies_bf16", lambda device: True)
    x, (weight, bias) = randn(2, 3, 4, 4), convolution(3, 4)
    with registry.recorded() as choices:
        gated_conv2d(*(t.to(getattr(torch, dtype)).requires_grad_(training) for t in (x, weight, bias)))
    assert [chosen for _, chosen in choices] == [name]


@pytest.mark.parametrize("op", [upsample_gated_conv2d, gated_conv2d])
def test_any_memory_format(op: object) -> None:
    x = randn(2, 6, 9, 10)
    weight, bias = convolution(6, 4)
    expected = op(x, weight, bias)
    torch.testing.assert_close(op(x.contiguous(memory_format=torch.channels_last), weight, bias), expected)
    wide = torch.zeros(2, 12, 9, 20, dtype=torch.float64)
    wide[:, ::2, :, ::2] = x
    torch.testing.assert_close(op(wide[:, ::2, :, ::2], weight, bias), expected)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_empty_batches(impl: str) -> None:
    weight, bias = convolution(3, 4)
    x = torch.zeros(0, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    y = upsample_gated_conv2d(x, weight, bias, impl=impl)
    assert y.shape == (0, 4, 16, 16)
    y.sum().backward()
    assert gated_conv2d(x, weight, bias).shape == (0, 4, 6, 6)
    assert gate(torch.zeros(0, 4)).shape == (0, 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_to_the_regions_dtype(dtype: torch.dtype) -> None:
    x, (weight, bias) = randn(2, 3, 8, 8).float(), [t.float() for t in convolution(3, 4)]
    weight.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        for y in (gated_conv2d(x, weight, bias), upsample_gated_conv2d(x, weight, bias)):
            assert y.dtype == dtype
            assert torch.autograd.grad(y.sum(), weight)[0].dtype == torch.float32
        assert gated_conv2d(x.double(), weight.double(), bias.double()).dtype == torch.float64
    assert gated_conv2d(x, weight, bias).dtype == torch.float32


@pytest.mark.parametrize("name", ["torch/phases", "torch/transposed", "torch/plain", "reference"])
def test_autocast_casts_the_inputs_and_nothing_that_is_widened_inside(name: str) -> None:
    narrow = [t.bfloat16() for t in (randn(2, 3, 8, 8), *convolution(3, 4))]
    with registry.forced(name):
        expected = upsample_gated_conv2d(*narrow)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(upsample_gated_conv2d(*narrow), expected)


@given(
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_the_phases_are_the_definition(
    batch: int, channels: tuple[int, int], size: tuple[int, int], activation: str
) -> None:
    x, (weight, bias) = randn(batch, channels[0], *size), convolution(*channels)
    ours, truth = (
        upsample_gated_conv2d(x, weight, bias, activation=activation, impl=i) for i in ("torch", "reference")
    )
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


X, (W, B) = torch.randn(2, 3, 8, 8), (torch.randn(8, 3, 3, 3), torch.randn(8))


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: gate(torch.randn(2, 3)), ValueError, r"gate: pre has shape \(2, 3\).*even number of channels"),
        (
            lambda: gate(torch.randn(2, 4), activation="gelu"),
            ValueError,
            "activation is 'gelu'; it must be one of identity",
        ),
        (lambda: gate(torch.ones(2, 4).int()), TypeError, "pre is torch.int32; it must be float32"),
        (lambda: gated_conv2d(X[0, 0], W), ValueError, r"x has shape \(8, 8\); it must be \(B, Cin, H, W\)"),
        (lambda: gated_conv2d(X, W[:7]), ValueError, r"weight has shape \(7, 3, 3, 3\).*even number of rows"),
        (lambda: gated_conv2d(X, W[:, :2]), ValueError, "x has 3 channels and weight has 8 rows of 2"),
        (lambda: gated_conv2d(X, W, groups=3), ValueError, "do not fit 3 groups"),
        (lambda: gated_conv2d(X, W, B[:4]), ValueError, r"bias has shape \(4,\); it must be \(8,\)"),
        (lambda: gated_conv2d(X, W.half()), TypeError, "weight is torch.float16 but x is torch.float32"),
        (lambda: gated_conv2d(X, W.to("meta")), ValueError, "weight is on meta but x is on cpu"),
        (lambda: upsample_gated_conv2d(X, W[..., :1]), ValueError, r"kernel of \(3, 1\); it must be \(3, 3\)"),
        (lambda: gated_conv2d(X, W, impl="fast"), ValueError, "impl is 'fast'; it must be None or one of"),
        (lambda: gated_conv2d(X, W, impl="triton"), RuntimeError, "impl='triton' cannot run: .*CUDA device"),
        (lambda: gated_conv2d(X, W, stride=0), ValueError, r"stride is \(0, 0\), padding \(0, 0\) and dilation"),
        (lambda: gated_conv2d(X, W, padding="full"), ValueError, "padding is 'full'; it must be numbers, 'same' or"),
        (lambda: gated_conv2d(X, W, stride=2, padding="same"), ValueError, r"the stride is \(2, 2\); 'same' needs"),
        (
            lambda: gated_conv2d(X, W, stride=(1, 2, 3)),
            ValueError,
            r"stride is \(1, 2, 3\); it must be a whole number, or two of them: height, then width",
        ),
        (lambda: gated_conv2d(X, W, stride=(2,)), ValueError, r"stride is \(2,\); it must be a whole number, or two"),
        (lambda: gated_conv2d(X, W, dilation=1.5), ValueError, "dilation is 1.5; it must be a whole number"),
        (lambda: gated_conv2d(X, W, padding=[1, "1"]), ValueError, r"padding is \[1, '1'\]; it must be a whole"),
        (lambda: gated_conv2d(X, W, groups=1.0), ValueError, "groups is 1.0; it must be a whole number"),
        (lambda: gated_conv2d(X, W[:, :, :0]), ValueError, r"weight has shape \(8, 3, 0, 3\); there must be a channel"),
        (lambda: gated_conv2d(X.tolist(), W), TypeError, "x is a list; it must be a torch.Tensor"),
        (lambda: upsample_gated_conv2d(X, W.numpy()), TypeError, "weight is a ndarray; it must be a torch.Tensor"),
        (lambda: gate([[1.0, 2.0]]), TypeError, "gate: pre is a list; it must be a torch.Tensor"),
        (
            lambda: gated_conv2d(X, W, dilation=(1, 4)),
            ValueError,
            "the kernel reaches over 9 pixels of width and x has 8 with its padding",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(call: object, kind: type, sentence: str) -> None:
    with pytest.raises(kind, match=sentence):
        call()


def test_two_numbers_may_stand_in_a_list() -> None:
    torch.testing.assert_close(
        gated_conv2d(X, W, stride=[1, 2], padding=[1, 0], dilation=[2, 1]),
        gated_conv2d(X, W, stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
    )


def test_one_image_and_numbers_of_numpy_are_taken_as_a_convolution_takes_them() -> None:
    two, one = np.int64(2), np.array([1, 1])
    torch.testing.assert_close(
        gated_conv2d(X[0], W, B, stride=two, padding=list(one), groups=one[0]),
        gated_conv2d(X, W, B, stride=2, padding=1)[0],
    )
    torch.testing.assert_close(upsample_gated_conv2d(X[0], W, B), upsample_gated_conv2d(X, W, B)[0])
