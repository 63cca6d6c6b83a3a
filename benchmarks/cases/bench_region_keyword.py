"""Region-keyword scores and loss, forward and backward, beside AttnGAN's loop over captions.

Captions have 1 to T keywords, evenly. The definition's tensors are so large that on a CPU half of its time goes into
page faults, unless the C library keeps memory, as in training with the engine: both are measured.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch

from benchmarks.cases.baselines.words_loss import words_loss
from benchmarks.harness import roofline
from benchmarks.harness.operator_case import OperatorCase, compare_operator
from benchmarks.harness.result import Series
from benchmarks.harness.suite import Suite
from fastt2i.ops import region_keyword_loss, region_keyword_scores


class Shape(NamedTuple):
    """Images and as many captions, regions of an image, most keywords of a caption, features."""

    batch: int
    regions: int
    keywords: int
    features: int

    def __str__(self) -> str:
        return f"B={self.batch} R={self.regions} T={self.keywords} D={self.features}"


#: AttnGAN's regions and words (289, 18), at the batch of its authors; and what our presets have.
SMALL, LARGE, ATTNGAN = Shape(64, 64, 16, 256), Shape(128, 256, 16, 256), Shape(48, 289, 18, 256)
LARGE_CUDA = Shape(256, 289, 18, 256)
#: Batches of the growth curve.
BATCHES, BATCHES_CUDA = (16, 32, 64), (64, 128, 512)
#: Sharpness of attention, pooling and matching, of XMC-GAN and of AttnGAN for birds.
GAMMAS = {"xmc": (5.0, 5.0, 50.0), "damsm": (4.0, 5.0, 10.0)}
#: Captions up to which AttnGAN's loop is timed on a CPU: it takes a minute beyond.
MAX_LOOP = 64


def compare(suite: Suite, shape: Shape, variant: str, *, loss: bool = True, **more: object) -> None:
    """more: other fields of the case."""
    batch, regions, count, features = shape
    random, scale = torch.Generator().manual_seed(0), features**-0.25
    dtype = torch.bfloat16 if suite.on_cuda else torch.float32
    v, e = (
        (scale * torch.randn(batch, rows, features, generator=random)).to(suite.device, dtype).requires_grad_()
        for rows in (regions, count)
    )
    lengths = [row % count + 1 for row in range(batch)]
    mask = (torch.arange(count) < torch.tensor(lengths)[:, None]).to(suite.device)
    gammas = dict(zip(("gamma_attention", "gamma_pooling", "gamma_matching"), GAMMAS[variant], strict=True))
    if not loss:
        del gammas["gamma_matching"]
    looped = loss and variant == "damsm" and (batch <= MAX_LOOP or suite.on_cuda)
    case = OperatorCase(
        "region_keyword_loss" if loss else "region_keyword_scores",
        f"{variant}, {shape}",
        partial(region_keyword_loss if loss else region_keyword_scores, variant=variant, **gammas),
        (v, e, mask),
        True,
        roofline.of_region_keyword(batch, regions, sum(lengths), features, batch, v.element_size(), training=True),
        peers={"AttnGAN's loop": partial(words_loss, lengths=lengths, gammas=GAMMAS[variant])} if looped else {},
        chunk=None if loss else 4,  # in a contrastive loss every sample depends on the others
        kinks=False,
        images=batch,
        **more,
    )
    compare_operator(suite, case)


CPU, FRESH = pytest.mark.on("cpu"), pytest.mark.gives_memory_back
CALLS = [
    *(pytest.param(SMALL, variant, marks=CPU) for variant in GAMMAS),
    pytest.param(ATTNGAN, "damsm", marks=CPU),
    pytest.param(SMALL, "xmc", marks=[CPU, FRESH]),
    pytest.param(ATTNGAN, "damsm", marks=[CPU, FRESH]),
    # The definition takes 2 GB and some seconds a run.
    pytest.param(LARGE, "xmc", marks=[CPU, pytest.mark.slow]),
    pytest.param(LARGE, "xmc", marks=[CPU, FRESH, pytest.mark.slow]),
    *(
        pytest.param(shape, variant, marks=pytest.mark.on("cuda"))
        for variant in GAMMAS
        for shape in (LARGE_CUDA, LARGE, ATTNGAN)
    ),
]


@pytest.mark.importance(9)
@pytest.mark.parametrize(("shape", "variant"), CALLS, ids=str)
def test_region_keyword_loss(benchmark: Suite, shape: Shape, variant: str) -> None:
    compare(benchmark, shape, variant, headline=shape == LARGE_CUDA or not benchmark.on_cuda)


@pytest.mark.importance(6)
@pytest.mark.quick
def test_region_keyword_scores(benchmark: Suite) -> None:
    compare(benchmark, SMALL, "xmc", loss=False)


@pytest.mark.importance(4)
@pytest.mark.parametrize("place", range(len(BATCHES)))
def test_region_keyword_loss_by_batch(benchmark: Suite, place: int) -> None:
    batch = (BATCHES_CUDA if benchmark.on_cuda else BATCHES)[place]
    series = Series("region_keyword_loss over the batch", "batch", batch)
    compare(benchmark, SMALL._replace(batch=batch, features=64), "xmc", series=series)
