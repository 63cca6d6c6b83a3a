"""Verification of an implementation against the reference in float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Largest relative error against float64; where the reference itself errs more in a dtype, twice that.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}
#: Samples that the reference takes at once in float64, which needs twice to four times the memory.
CHUNK = 4

Run = Callable[..., Tensor]


def results(run: Run, arguments: tuple[Any, ...], training: bool) -> list[Tensor]:
    """The result of a call, and the gradients of its arguments for a fixed upstream gradient."""
    own = [a.detach().requires_grad_(training and a.requires_grad) if isinstance(a, Tensor) else a for a in arguments]
    y = run(*own)
    if not training:
        return [y]
    wanted = [a for a in own if isinstance(a, Tensor) and a.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, wanted, upstream(y))]


def upstream(y: Tensor) -> Tensor:
    """A deterministic upstream gradient: it varies over a sample, and is the same for every sample of a batch."""
    if y.ndim == 0:
        return torch.ones_like(y)
    wave = torch.linspace(-1.0, 1.0, max(1, y[:1].numel()), device=y.device, dtype=torch.float64)
    return torch.empty_like(y).copy_(wave.view(y[:1].shape))


def reference_results(
    reference: Run, arguments: tuple[Any, ...], training: bool, chunk: int | None = CHUNK, *, kinks: bool = True
) -> list[tuple[Tensor, float]]:
    """The result and the gradients in float64, each with the relative error that a candidate may have.

    That is the dtype's bound, twice the error of the reference in that dtype, or twice the error in float64 for
    arguments that are rounded once more: folded weights are, and at a kink of the activation that may choose its side.

    Args:
        reference: the reference implementation.
        arguments: of a call; the first holds the samples.
        training: whether gradients are compared.
        chunk: samples taken at once in float64; None where samples depend on each other, as in a contrastive loss.
        kinks: whether to allow for that second rounding; not where the function is smooth and nothing is folded.
    """
    exact = _in_float64(reference, arguments, training, chunk)
    rounded = _in_float64(reference, tuple(map(_round_again, arguments)), training, chunk) if kinks else exact
    own = results(reference, arguments, training)
    bound = BOUNDS[own[0].dtype]
    return [
        (right, max(bound, 2 * relative_error(its, right), 2 * relative_error(near, right)))
        for right, near, its in zip(exact, rounded, own, strict=True)
    ]


def compare(found: list[Tensor], exact: list[tuple[Tensor, float]]) -> str | None:
    """The first error of a candidate's results above what `reference_results` allows, in words; None for none."""
    for place, (mine, (right, allowed)) in enumerate(zip(found, exact, strict=True)):
        error = relative_error(mine, right)
        if not error <= allowed:
            what = "its result" if place == 0 else f"its gradient {place}"
            return f"{what} is wrong by {error:.1e}, more than {allowed:.1e}"
    return None


def relative_error(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||."""
    scale = exact.norm().clamp(min=torch.finfo(exact.dtype).tiny)
    return ((found.double() - exact).norm() / scale).item()


def _in_float64(reference: Run, arguments: tuple[Any, ...], training: bool, chunk: int | None) -> list[Tensor]:
    """Results in float64, a few samples at a time: gradients of the other arguments add up."""
    first, *others = (_to_float64(a) if isinstance(a, Tensor) else a for a in arguments)
    if chunk is None:
        return results(reference, tuple(map(_like, arguments, (first, *others))), training)
    pieces = [
        results(reference, (_like(arguments[0], piece), *map(_like, arguments[1:], others)), training)
        for piece in first.split(chunk)
    ]
    rows, gradients = 1 + (training and arguments[0].requires_grad), []
    for place, parts in enumerate(zip(*pieces, strict=True)):
        gradients.append(torch.cat(parts) if place < rows else torch.stack(parts).sum(dim=0))
    return gradients


def _to_float64(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


def _round_again(argument: Any) -> Any:
    """In float64, perturbed by as much as rounding to its dtype may do."""
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    wide = argument.detach().double()
    random = torch.Generator(argument.device).manual_seed(0)
    noise = torch.rand(wide.shape, generator=random, device=wide.device, dtype=wide.dtype)
    off = torch.finfo(argument.dtype).eps / 2 * (2 * noise - 1)
    return (wide * (1 + off)).requires_grad_(argument.requires_grad)


def _like(original: Any, wide: Any) -> Any:
    return wide.requires_grad_(original.requires_grad) if isinstance(original, Tensor) else wide
