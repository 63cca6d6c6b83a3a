"""The contrastive loss's kernels against the definition in float64: values and both derivatives, every tail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastt2i.ops import numerics
from fastt2i.ops.contrastive_triton import (
    l2_normalize,
    l2_normalize_backward,
    symmetric_cross_entropy,
    symmetric_cross_entropy_backward,
)

pytestmark = pytest.mark.usefixtures("poisoned")


def draw(count: int, device: torch.device, seed: int = 0) -> Tensor:
    return 10 * torch.randn(count, count, generator=torch.Generator().manual_seed(seed)).to(device)


def pairs(count: int, kind: str, device: torch.device) -> Tensor | None:
    """That are no negatives, the diagonal among them; `most`: those of a whole tile of a row, before its diagonal."""
    if kind == "none":
        return None
    if kind == "most":
        return torch.ones(count, count, dtype=torch.bool, device=device).tril()
    classes = torch.arange(count, device=device) % 5
    return classes[:, None] == classes


def all_of(run: object, logits: Tensor, exclude: Tensor | None) -> list[Tensor]:
    """The loss, its gradient, and the gradients of a mixture of that."""
    logits = logits.detach().requires_grad_()
    upstream = torch.tensor(0.7, dtype=logits.dtype, device=logits.device, requires_grad=True)
    loss = run(logits, exclude)
    (first,) = torch.autograd.grad(loss, logits, upstream, create_graph=True)
    mixture = draw(len(logits), logits.device, 1).to(logits.dtype)
    return [loss, first, *torch.autograd.grad(first, (upstream, logits), mixture)]


@pytest.mark.parametrize("count", [1, 2, 33, 130])
@pytest.mark.parametrize("kind", ["none", "classes", "most"])
def test_values_and_derivatives(kind: str, count: int, device: torch.device) -> None:
    logits, exclude = draw(count, device), pairs(count, kind, device)
    ours = all_of(lambda x, pairs: symmetric_cross_entropy(x, pairs)[0], logits, exclude)
    truth = all_of(numerics.symmetric_cross_entropy, logits.double(), exclude)
    for place, (a, b) in enumerate(zip(ours, truth, strict=True)):
        assert a.dtype == torch.float32 and a.shape == b.shape
        assert (a.double() - b).norm() <= 1e-5 * max(b.norm(), 1e-2), place


def test_other_strides_and_nan(device: torch.device) -> None:
    logits, exclude = draw(40, device), pairs(40, "classes", device)
    loss = symmetric_cross_entropy(logits.T, exclude)[0]
    assert torch.allclose(loss, symmetric_cross_entropy(logits, exclude)[0], rtol=1e-6)
    logits[3, 4] = torch.nan
    assert symmetric_cross_entropy(logits, exclude)[0].isnan()


def test_torch_knows_the_operators(device: torch.device) -> None:
    logits, exclude = draw(6, device).requires_grad_(), pairs(6, "classes", device)
    loss, lse = symmetric_cross_entropy(logits, exclude)
    torch.library.opcheck(symmetric_cross_entropy, (logits, exclude))
    torch.library.opcheck(symmetric_cross_entropy_backward, (loss.detach(), logits, exclude, lse))


@pytest.mark.parametrize("shape", [(1, 1), (5, 24), (3, 300)])
def test_normalizing(shape: tuple[int, int], device: torch.device) -> None:
    x, upstream, mixture = (torch.randn(shape, generator=torch.Generator().manual_seed(n)).to(device) for n in range(3))
    x[0] *= 1e-8  # below the floor
    results = []
    for run, kind in ((lambda x: l2_normalize(x)[0], torch.float32), (numerics.l2_normalize, torch.float64)):
        own, dy = x.to(kind).T.contiguous().T.requires_grad_(), upstream.to(kind).requires_grad_()
        y = run(own)
        (first,) = torch.autograd.grad(y, own, dy, create_graph=True)
        results.append([y, first, *torch.autograd.grad(first, (dy, own), mixture.to(kind))])
    for place, (a, b) in enumerate(zip(*results, strict=True)):
        for row_a, row_b in zip(a.double(), b, strict=True):
            scale = max(row_b.norm(), 1e-6 * results[1][1].norm() ** 2)
            assert a.dtype == torch.float32 and (row_a - row_b).norm() <= 1e-5 * scale, place


def test_norms_that_are_not_finite_are_nan(device: torch.device) -> None:
    x = torch.ones(3, 8, device=device)
    x[0, 1], x[1] = torch.nan, 1e20
    assert l2_normalize(x)[0].isnan().all(dim=1).tolist() == [True, True, False]
    assert l2_normalize(x[:0])[0].shape == (0, 8)


def test_torch_knows_how_to_normalize(device: torch.device) -> None:
    x = torch.randn(3, 8, device=device, requires_grad=True)
    torch.library.opcheck(l2_normalize, (x,))
    torch.library.opcheck(l2_normalize_backward, (torch.randn(3, 8, device=device), x, *l2_normalize(x.detach())))
