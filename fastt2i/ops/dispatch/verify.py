"""Whether an implementation of an operator agrees with its definition in float64, gradients included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: Largest relative error against float64; an operator whose definition errs more in a dtype may err twice as much.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float64: 1e-12}
#: Samples that the definition takes at once in float64, which needs twice to four times the memory.
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
    """Some gradient that is not the same everywhere, and the same for a sample wherever it stands in a batch."""
    if y.ndim == 0:
        return torch.ones_like(y)
    wave = torch.linspace(-1.0, 1.0, max(1, y[:1].numel()), device=y.device, dtype=torch.float64)
    return torch.empty_like(y).copy_(wave.view(y[:1].shape))


def expected(
    truth: Run, arguments: tuple[Any, ...], training: bool, chunk: int | None = CHUNK, *, kinks: bool = True
) -> list[tuple[Tensor, float]]:
    """The result and the gradients in float64, each with how far off a candidate may be.

    That is as far as the dtype's bound, twice as far as the definition is in that dtype, or twice as far as float64 is
    for arguments that are rounded once more: folded weights are, and at a kink of the activation that may choose its
    side.

    Args:
        truth: the definition.
        arguments: of a call; the first holds the samples.
        training: whether gradients count.
        chunk: samples taken at once in float64; None where they do not stand alone, as in a contrastive loss.
        kinks: whether what is rounded once more counts; it does not where the function is smooth and nothing folded.
    """
    exact = _exact(truth, arguments, training, chunk)
    rounded = _exact(truth, tuple(map(_rounded_once_more, arguments)), training, chunk) if kinks else exact
    usual = results(truth, arguments, training)
    bound = BOUNDS[usual[0].dtype]
    return [
        (right, max(bound, 2 * relative_error(its, right), 2 * relative_error(near, right)))
        for right, near, its in zip(exact, rounded, usual, strict=True)
    ]


def disagreement(found: list[Tensor], right: list[tuple[Tensor, float]]) -> str | None:
    """What is wrong with the results of a candidate, given what is `expected`; None where nothing is."""
    for place, (mine, (exact, allowed)) in enumerate(zip(found, right, strict=True)):
        off = relative_error(mine, exact)
        if not off <= allowed:
            what = "its result" if place == 0 else f"its gradient {place}"
            return f"{what} is wrong by {off:.1e}, more than {allowed:.1e}"
    return None


def relative_error(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||."""
    scale = exact.norm().clamp(min=torch.finfo(exact.dtype).tiny)
    return ((found.double() - exact).norm() / scale).item()


def _exact(truth: Run, arguments: tuple[Any, ...], training: bool, chunk: int | None) -> list[Tensor]:
    """The same in float64, a few samples at a time: gradients of the other arguments add up."""
    first, *others = (_widened(a) if isinstance(a, Tensor) else a for a in arguments)
    if chunk is None:
        return results(truth, tuple(map(_like, arguments, (first, *others))), training)
    pieces = [
        results(truth, (_like(arguments[0], piece), *map(_like, arguments[1:], others)), training)
        for piece in first.split(chunk)
    ]
    rows, gradients = 1 + (training and arguments[0].requires_grad), []
    for place, parts in enumerate(zip(*pieces, strict=True)):
        gradients.append(torch.cat(parts) if place < rows else torch.stack(parts).sum(dim=0))
    return gradients


def _widened(x: Tensor) -> Tensor:
    return x.detach().double() if x.is_floating_point() else x


def _rounded_once_more(argument: Any) -> Any:
    """In float64, off by as much as rounding to its dtype may be."""
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    wide = argument.detach().double()
    random = torch.Generator(argument.device).manual_seed(0)
    noise = torch.rand(wide.shape, generator=random, device=wide.device, dtype=wide.dtype)
    off = torch.finfo(argument.dtype).eps / 2 * (2 * noise - 1)
    return (wide * (1 + off)).requires_grad_(argument.requires_grad)


def _like(original: Any, wide: Any) -> Any:
    return wide.requires_grad_(original.requires_grad) if isinstance(original, Tensor) else wide
