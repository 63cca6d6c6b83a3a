"""Modulated gated convolutions: their definition, both derivatives, what runs on a CPU, and mistakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastt2i.ops import (
    gated_conv2d,
    modulated_gated_conv2d,
    modulated_upsample_gated_conv2d,
    tuning,
    upsample_gated_conv2d,
)
from fastt2i.ops.dispatch import registry, timing_cache
from fastt2i.ops.dispatch.correctness import compare, reference_results, results
from fastt2i.ops.gated_conv.reference import gated_conv2d as plain_reference
from fastt2i.ops.modulated_gated_conv import implementations, reference

GAIN = 0.75
#: By the operator: the one that it modulates, and both's settings.
OPERATORS: dict[Callable[..., Tensor], tuple[Callable[..., Tensor], dict[str, Any]]] = {
    modulated_gated_conv2d: (gated_conv2d, {"padding": "same"}),
    modulated_upsample_gated_conv2d: (upsample_gated_conv2d, {}),
}


def inputs(
    op: Callable[..., Tensor], dtype: torch.dtype = torch.float64, size: tuple[int, int] = (3, 2)
) -> dict[str, Tensor]:
    """By name; 2 images of 2 channels, to 3."""
    random = torch.Generator().manual_seed(0)
    factor = 2 if op is modulated_upsample_gated_conv2d else 1
    shapes = {
        "x": (2, 2, *size),
        "weight": (6, 2, 3, 3),
        "bias": (6,),
        "scale": (2, 3),
        "shift": (2, 3),
        "residual": (2, 3, factor * size[0], factor * size[1]),
    }
    made = {name: torch.randn(shape, generator=random, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("op", OPERATORS)
def test_it_is_what_it_says(op: Callable[..., Tensor], impl: str) -> None:
    given, (plain, options) = inputs(op), OPERATORS[op]
    y = plain(given["x"], given["weight"], given["bias"], **options)
    y = given["scale"][..., None, None] * y + given["shift"][..., None, None]
    residual = given.pop("residual")
    torch.testing.assert_close(op(**given, **options, impl=impl), y)
    torch.testing.assert_close(op(**given, residual=residual, gain=GAIN, **options, impl=impl), GAIN * (residual + y))


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("op", OPERATORS)
def test_it_differentiates_twice(op: Callable[..., Tensor], impl: str) -> None:
    given, (_, options) = inputs(op, size=(1, 2)), OPERATORS[op]

    def run(*tensors: Tensor) -> Tensor:
        return op(**dict(zip(given, tensors, strict=True)), gain=GAIN, activation="silu", **options, impl=impl)

    assert torch.autograd.gradcheck(run, tuple(given.values()))
    assert torch.autograd.gradgradcheck(run, tuple(given.values()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("op", OPERATORS)
def test_on_a_cpu_it_is_its_parts_to_the_bit(op: Callable[..., Tensor], layout: torch.memory_format) -> None:
    given, (plain, options) = inputs(op, torch.float32, (40, 40)), OPERATORS[op]
    x = given["x"].detach().contiguous(memory_format=layout).requires_grad_()
    given |= {"x": x}
    gated = plain(given["x"], given["weight"], given["bias"], **options)
    scale, shift = (given[name][:, :, None, None] for name in ("scale", "shift"))
    rows = torch.addcmul(shift, gated, scale)
    parts, whole = (given["residual"] + rows) * GAIN, op(**given, gain=GAIN, **options)
    assert torch.equal(whole, parts) and whole.stride() == parts.stride()
    upstream = torch.randn_like(whole)
    both = [torch.autograd.grad(y, list(given.values()), upstream) for y in (whole, parts)]
    for name, found, expected in zip(given, *both, strict=True):
        # These two are sums over pixels, whose order is another where pixels are modulated by rows.
        bound = 1e-4 if name in ("scale", "shift") else 0
        torch.testing.assert_close(found, expected, rtol=bound, atol=10 * bound)


@pytest.mark.parametrize("op", OPERATORS)
def test_under_autocast_everything_is_cast(op: Callable[..., Tensor]) -> None:
    given, (_, options) = inputs(op, torch.float32), OPERATORS[op]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = op(**given, **options)
    narrow = {name: tensor.to(torch.bfloat16) for name, tensor in given.items()}
    assert torch.equal(y, op(**narrow, **options)) and y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in given.values())


def test_it_takes_the_settings_of_a_convolution() -> None:
    x, weight = torch.randn(2, 4, 9, 7), torch.randn(8, 2, 3, 3)
    scale, shift = torch.randn(2, 4), torch.randn(2, 4)
    options: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2}
    y = gated_conv2d(x, weight, **options)
    found = modulated_gated_conv2d(x, weight, None, scale, shift, residual=y, **options)
    torch.testing.assert_close(found, y + scale[..., None, None] * y + shift[..., None, None])


@pytest.mark.parametrize("op", OPERATORS)
def test_transforms(op: Callable[..., Tensor]) -> None:
    given, (_, options) = inputs(op, torch.float32), OPERATORS[op]
    detached = {name: tensor.detach() for name, tensor in given.items()}

    def total(scale: Tensor) -> Tensor:
        return op(**detached | {"scale": scale}, **options).square().sum()

    expected = torch.autograd.functional.jacobian(total, detached["scale"])
    torch.testing.assert_close(torch.func.grad(total)(detached["scale"]), expected)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": torch.zeros(2, 3, 3)}, r"x has shape \(2, 3, 3\); it must be \(B, Cin, H, W\)$"),
        ({"scale": torch.zeros(2, 6)}, r"scale has shape \(2, 6\); it must be \(2, 3\), a number for each image"),
        ({"shift": torch.zeros(1, 3)}, r"shift has shape \(1, 3\); it must be \(2, 3\)"),
        ({"residual": torch.zeros(2, 3, 9, 9)}, r"residual has shape \(2, 3, 9, 9\); it must be"),
        ({"scale": torch.zeros(2, 3, dtype=torch.float64)}, r"scale is torch.float64 but x is torch.float32"),
        ({"shift": None}, "shift is a NoneType; it must be a torch.Tensor"),
        ({"gain": float("nan")}, "gain is nan; it must be finite"),
        ({"activation": "swish"}, "activation is 'swish'"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
    ],
)
@pytest.mark.parametrize("op", OPERATORS)
def test_mistakes(op: Callable[..., Tensor], wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        op(**inputs(op, torch.float32) | OPERATORS[op][1] | wrong)


def test_a_candidate_is_verified_sample_by_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Rows of scale, shift and residual go with those of x; the gradients of weight and bias add up."""
    given = list(inputs(modulated_gated_conv2d, torch.float32).values())
    arguments = (*given, GAIN, (1, 1), (1, 1), (1, 1), 1, "leaky_relu", 0.2)
    run = reference.modulated_gated_conv2d
    exact = reference_results(run, arguments, True, 1, per_sample=implementations.PER_SAMPLE)
    assert compare(results(run, arguments, True), exact) is None
    assert [tensor.shape for tensor, _ in exact[1:]] == [tensor.shape for tensor in given]

    def wrong(*arguments: Any) -> Tensor:
        return run(*arguments) + 0.1 * plain_reference(*arguments[:3], *arguments[7:])

    assert "its result is wrong" in str(compare(results(wrong, arguments, True), exact))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing_cache, "_loaded", {})
    with tuning(), registry.recorded() as choices:
        modulated_gated_conv2d(*given[:5], residual=given[5], padding=1)
    assert choices[-1][1] in ("reference", "torch")
