"""A convolution with a leaky ReLU, shortcut and pooling: definition, both derivatives, a CPU's bits, and mistakes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastt2i.ops import leaky_conv2d, tuning
from fastt2i.ops.dispatch import registry, timing_cache
from fastt2i.ops.dispatch.correctness import compare, reference_results, results
from fastt2i.ops.leaky_conv import reference
from fastt2i.ops.leaky_conv.functional import Shortcut

GAIN = math.sqrt(0.5)


def inputs(dtype: torch.dtype = torch.float64, size: int = 4) -> list[Tensor]:
    """x, weight and bias of a convolution from 2 to 3 channels, and those of a shortcut."""
    random = torch.Generator().manual_seed(0)
    shapes = [(2, 2, size, size), (3, 2, 3, 3), (3,), (2, 2, size, size), (3, 2, 1, 1), (3,)]
    made = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def run(*tensors: Tensor, **options: Any) -> tuple[Tensor, ...]:
    shortcut = Shortcut(*tensors[3:]) if len(tensors) > 3 else None
    y, pooled = leaky_conv2d(*tensors[:3], padding=1, shortcut=shortcut, gain=GAIN, **options)
    return (y,) if pooled is None else (y, pooled)


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_it_is_what_it_says(impl: str) -> None:
    x, weight, bias, beside, beside_weight, beside_bias = given = inputs()
    y = F.leaky_relu(F.conv2d(x, weight, bias, padding=1), 0.2)
    whole = GAIN * (y + F.conv2d(beside, beside_weight, beside_bias))
    torch.testing.assert_close(run(*given, pool=True, impl=impl), (whole, F.avg_pool2d(whole, 2)))
    torch.testing.assert_close(run(*given[:3], impl=impl), (GAIN * y,))
    strided, pooled = leaky_conv2d(x, weight, stride=2, padding=1, negative_slope=0.1, impl=impl)
    assert pooled is None
    torch.testing.assert_close(strided, F.leaky_relu(F.conv2d(x, weight, stride=2, padding=1), 0.1))


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_it_differentiates_twice(impl: str) -> None:
    given = tuple(inputs(size=2))
    assert torch.autograd.gradcheck(lambda *t: run(*t, pool=True, impl=impl), given)
    assert torch.autograd.gradgradcheck(lambda *t: run(*t, pool=True, impl=impl), given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_it_is_its_parts_to_the_bit(dtype: torch.dtype) -> None:
    given = inputs(dtype, 16)
    x, weight, bias, beside, beside_weight, beside_bias = given
    y = F.leaky_relu_(F.conv2d(x, weight, bias, padding=1), 0.2)
    y = (y + F.conv2d(beside, beside_weight, beside_bias)) * GAIN
    parts, whole = (y, F.avg_pool2d(y, 2)), run(*given, pool=True)
    upstream = [torch.randn_like(part) for part in parts]
    for found, expected in zip(
        (*whole, *torch.autograd.grad(whole, given, upstream)),
        (*parts, *torch.autograd.grad(parts, given, upstream)),
        strict=True,
    ):
        assert torch.equal(found, expected)


def test_under_autocast_everything_is_cast() -> None:
    given = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = run(*given, pool=True)
    narrow = run(*(tensor.to(torch.bfloat16) for tensor in given), pool=True)
    assert all(torch.equal(a, b) and a.dtype == torch.bfloat16 for a, b in zip(y, narrow, strict=True))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": torch.zeros(2, 3, 4, 4)}, r"weight has shape \(3, 2, 3, 3\); it must be \(Cout, 3, kh, kw\)"),
        ({"bias": torch.zeros(2)}, r"bias has shape \(2,\); it must be \(3,\)"),
        ({"negative_slope": 0.0}, "negative_slope is 0.0; it must be more than 0"),
        ({"gain": -1.0}, "gain is -1.0; it must be more than 0"),
        ({"pool": True, "stride": 2, "padding": 0}, "the output has 1x1 pixels; with pool=True both"),
        ({"shortcut": Shortcut(torch.zeros(2, 2, 5, 4), torch.zeros(3, 2, 1, 1))}, r"the shortcut has shape"),
        ({"shortcut": Shortcut(torch.zeros(2, 2, 4, 4), torch.zeros(3, 3, 1, 1))}, r"weight has shape \(3, 3, 1, 1\)"),
        (
            {"shortcut": Shortcut(torch.zeros(2, 2, 4, 4), torch.zeros(3, 2, 1, 1), torch.zeros(1))},
            r"bias has shape \(1,\); it must be \(3,\)",
        ),
        ({"shortcut": Shortcut(torch.zeros(2, 2, 4, 4), None)}, "the shortcut's x and weight must be tensors"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
    ],
)
def test_mistakes(wrong: dict[str, Any], sentence: str) -> None:
    x, weight, bias, *_ = inputs(torch.float32)
    with pytest.raises((TypeError, ValueError), match=sentence):
        leaky_conv2d(**{"x": x, "weight": weight, "bias": bias, "padding": 1} | wrong)


def test_both_results_are_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Before a candidate is timed: y, its pooling, and every gradient, sample by sample."""
    given = inputs(torch.float32)
    arguments = (*given, GAIN, (1, 1), (1, 1), 0.2, True)
    exact = reference_results(reference.leaky_conv2d, arguments, True, 1, per_sample=(0, 3))
    assert compare(results(reference.leaky_conv2d, arguments, True), exact) is None
    assert [tensor.shape for tensor, _ in exact[2:]] == [tensor.shape for tensor in given]

    def wrong(*arguments: Any) -> tuple[Tensor, Tensor]:
        y, pooled = reference.leaky_conv2d(*arguments)
        return y, 1.1 * pooled

    assert compare(results(wrong, arguments, True), exact) is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing_cache, "_loaded", {})
    with tuning(), registry.recorded() as choices:
        run(*given, pool=True)
    assert choices[-1][1] in ("reference", "torch")
