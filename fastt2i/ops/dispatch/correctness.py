"""Verification of an implementation against the reference in float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Largest relative error against float64; where the reference itself errs more in a dtype, twice that.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}
#: Inputs a little beside a call's own that a candidate's error is excused by, before it is left out.
MANY_PERTURBATIONS = 8
#: Samples that the reference takes at once in float64, which needs twice to four times the memory.
CHUNK = 4

#: What computes an operator: it gives a tensor, or a tuple of them.
Run = Callable[..., Any]


def results(run: Run, arguments: tuple[Any, ...], training: bool) -> list[Tensor]:
    """The results of a call, and the gradients of its arguments for a fixed upstream gradient."""
    own = [a.detach().requires_grad_(training and a.requires_grad) if isinstance(a, Tensor) else a for a in arguments]
    y = run(*own)
    outputs = y if isinstance(y, tuple) else (y,)
    if not training:
        return list(outputs)
    wanted = [a for a in own if isinstance(a, Tensor) and a.requires_grad]
    gradients = torch.autograd.grad(outputs, wanted, [upstream(output) for output in outputs])
    return [*(output.detach() for output in outputs), *gradients]


def upstream(y: Tensor) -> Tensor:
    """A deterministic upstream gradient: it varies over a sample, and is the same for every sample of a batch."""
    if y.ndim == 0:
        return torch.ones_like(y)
    wave = torch.linspace(-1.0, 1.0, max(1, y[:1].numel()), device=y.device, dtype=torch.float64)
    return torch.empty_like(y).copy_(wave.view(y[:1].shape))


def reference_results(
    reference: Run,
    arguments: tuple[Any, ...],
    training: bool,
    chunk: int | None = CHUNK,
    *,
    kinks: bool = True,
    perturbations: int = 1,
    per_sample: tuple[int, ...] = (0,),
) -> list[tuple[Tensor, float]]:
    """The result and the gradients in float64, each with the relative error that a candidate may have.

    That is the dtype's bound, twice the error of the reference in that dtype, or twice the error in float64 for
    arguments that are rounded once more: folded weights are, and at a kink of the activation that may choose its side.
    Of two opposite perturbations one takes an element that lies close to a kink to the other side, as a candidate's
    rounding may: unless its pre-activation moves by less than rounding takes it, which several pairs make unlikely.
    What is wrong by more than the few elements that lie so close is wrong still.

    Args:
        reference: the reference implementation.
        arguments: of a call.
        training: whether gradients are compared.
        chunk: samples taken at once in float64; None where samples depend on each other, as in a contrastive loss.
        kinks: whether to allow for that second rounding; not where the function is smooth and nothing is folded.
        perturbations: how many times the arguments are rounded once more, each time otherwise.
        per_sample: places of the arguments that have a row for each sample.
    """
    exact = _in_float64(reference, arguments, training, chunk, per_sample)
    own = results(reference, arguments, training)
    allowed = [max(BOUNDS[own[0].dtype], 2 * relative_error(*pair)) for pair in zip(own, exact, strict=True)]
    for number in range(perturbations if kinks else 0):
        again = tuple(_round_again(argument, number) for argument in arguments)
        near = _in_float64(reference, again, training, chunk, per_sample)
        errors = [2 * relative_error(*pair) for pair in zip(near, exact, strict=True)]
        allowed = [max(pair) for pair in zip(allowed, errors, strict=True)]
    return list(zip(exact, allowed, strict=True))


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


def _in_float64(
    reference: Run, arguments: tuple[Any, ...], training: bool, chunk: int | None, per_sample: tuple[int, ...]
) -> list[Tensor]:
    """Results in float64, a few samples at a time: gradients of what all samples share add up."""
    wide = [_to_float64(a) if isinstance(a, Tensor) else a for a in arguments]
    if chunk is None:
        return results(reference, tuple(map(_like, arguments, wide)), training)
    split = {place: wide[place].split(chunk) for place in per_sample if isinstance(wide[place], Tensor)}
    pieces = []
    for number in range(len(split[0])):
        some = [split[place][number] if place in split else a for place, a in enumerate(wide)]
        pieces.append(results(reference, tuple(map(_like, arguments, some)), training))
    wanted = [place for place, a in enumerate(arguments) if training and isinstance(a, Tensor) and a.requires_grad]
    outputs = len(pieces[0]) - len(wanted)
    has_rows = [*[True] * outputs, *(place in split for place in wanted)]
    return [
        torch.cat(parts) if rows else torch.stack(parts).sum(dim=0)
        for rows, parts in zip(has_rows, zip(*pieces, strict=True), strict=True)
    ]


def _to_float64(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


def _round_again(argument: Any, number: int) -> Any:
    """In float64, perturbed by as much as rounding to its dtype may do, or by a tenth of the bound where that is more:
    a sum of many products is off by more than one rounding. Two numbers, 2k and 2k + 1, give opposite perturbations.
    """
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    wide = argument.detach().double()
    random = torch.Generator(argument.device).manual_seed(number // 2)
    noise = torch.rand(wide.shape, generator=random, device=wide.device, dtype=wide.dtype)
    off = max(torch.finfo(argument.dtype).eps / 2, BOUNDS[argument.dtype] / 10) * (2 * noise - 1) * (-1) ** number
    return (wide * (1 + off)).requires_grad_(argument.requires_grad)


def _like(original: Any, wide: Any) -> Any:
    return wide.requires_grad_(original.requires_grad) if isinstance(original, Tensor) else wide
