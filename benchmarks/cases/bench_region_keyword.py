"""Region-keyword scores and loss, forward and backward, beside AttnGAN's loop over captions.

Captions have 1 to T keywords, evenly. The definition's tensors are so large that on a CPU half of its time goes into
fresh pages, unless the C library keeps memory, as in training with the engine: both are measured.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.conftest import Suite
from benchmarks.harness import roofline as floors
from benchmarks.harness.operator_case import OperatorCase, Run
from benchmarks.harness.result import Series
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
#: By these the loss grows.
BATCHES, BATCHES_CUDA = (16, 32, 64), (64, 128, 512)
#: Sharpness of attention, pooling and matching, of XMC-GAN and of AttnGAN for birds.
GAMMAS = {"xmc": (5.0, 5.0, 50.0), "damsm": (4.0, 5.0, 10.0)}
#: Captions up to which AttnGAN's loop takes part: it takes a minute on a CPU beyond.
LOOP = 64


def words_loss(regions: Tensor, keywords: Tensor, mask: Tensor, lengths: list[int]) -> Tensor:
    """AttnGAN's form of the loss: caption after caption, against all images at once."""
    attention_gamma, pooling_gamma, matching_gamma = GAMMAS["damsm"]
    columns = []
    for keyword, length in zip(keywords, lengths, strict=True):
        word = keyword[:length]
        per_region = torch.softmax(regions @ word.T, dim=2)  # B x R x T, over words
        attention = torch.softmax(attention_gamma * per_region, dim=1)
        cosine = F.cosine_similarity(attention.mT @ regions, word[None], dim=2, eps=1e-8)
        columns.append(torch.exp(pooling_gamma * cosine).sum(dim=1).log())
    logits = matching_gamma * torch.stack(columns, dim=1)
    own = torch.arange(len(logits), device=logits.device)
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def compete(
    suite: Suite,
    shape: Shape,
    variant: str,
    dtype: torch.dtype,
    *,
    loss: bool = True,
    headline: bool = False,
    series: Series | None = None,
) -> None:
    batch, regions, count, features = shape
    random, scale = torch.Generator().manual_seed(0), features**-0.25
    v, e = (
        (scale * torch.randn(batch, rows, features, generator=random)).to(suite.device, dtype).requires_grad_()
        for rows in (regions, count)
    )
    lengths = [row % count + 1 for row in range(batch)]
    mask = (torch.arange(count) < torch.tensor(lengths)[:, None]).to(suite.device)
    gammas = dict(zip(("gamma_attention", "gamma_pooling", "gamma_matching"), GAMMAS[variant], strict=True))
    if not loss:
        del gammas["gamma_matching"]
    op: Run = partial(region_keyword_loss if loss else region_keyword_scores, variant=variant, **gammas)
    looped = loss and variant == "damsm" and (batch <= LOOP or suite.on_cuda)
    work = floors.of_region_keyword(batch, regions, sum(lengths), features, batch, v.element_size(), training=True)
    suite.compete(
        OperatorCase(
            "region_keyword_loss" if loss else "region_keyword_scores",
            f"{variant}, {shape}",
            op,
            (v, e, mask),
            True,
            work,
            peers={"AttnGAN's loop": partial(words_loss, lengths=lengths)} if looped else None,
            chunk=None if loss else 4,  # in a contrastive loss no sample stands alone
            kinks=False,
            images=batch,
            headline=headline,
            series=series,
        )
    )


@pytest.mark.importance(9)
@pytest.mark.on("cpu")
@pytest.mark.parametrize(("shape", "variant"), [(SMALL, "xmc"), (SMALL, "damsm"), (ATTNGAN, "damsm")], ids=str)
def test_region_keyword_loss(suite: Suite, shape: Shape, variant: str) -> None:
    compete(suite, shape, variant, torch.float32, headline=True)


@pytest.mark.gives_memory_back
@pytest.mark.importance(9)
@pytest.mark.on("cpu")
@pytest.mark.parametrize(("shape", "variant"), [(SMALL, "xmc"), (ATTNGAN, "damsm")], ids=str)
def test_region_keyword_loss_in_fresh_memory(suite: Suite, shape: Shape, variant: str) -> None:
    compete(suite, shape, variant, torch.float32, headline=True)


@pytest.mark.slow
@pytest.mark.importance(9)
@pytest.mark.on("cpu")
def test_region_keyword_loss_of_a_large_batch(suite: Suite) -> None:
    """The definition takes 2 GB and some seconds a run."""
    compete(suite, LARGE, "xmc", torch.float32, headline=True)


@pytest.mark.slow
@pytest.mark.gives_memory_back
@pytest.mark.importance(9)
@pytest.mark.on("cpu")
def test_region_keyword_loss_of_a_large_batch_in_fresh_memory(suite: Suite) -> None:
    compete(suite, LARGE, "xmc", torch.float32, headline=True)


@pytest.mark.importance(9)
@pytest.mark.on("cuda")
@pytest.mark.parametrize("shape", [LARGE_CUDA, LARGE, ATTNGAN], ids=str)
@pytest.mark.parametrize("variant", GAMMAS)
def test_region_keyword_loss_on_a_gpu(suite: Suite, shape: Shape, variant: str) -> None:
    compete(suite, shape, variant, torch.bfloat16, headline=shape == LARGE_CUDA)


@pytest.mark.importance(6)
@pytest.mark.quick
def test_region_keyword_scores(suite: Suite) -> None:
    compete(suite, SMALL, "xmc", torch.bfloat16 if suite.on_cuda else torch.float32, loss=False)


@pytest.mark.importance(4)
@pytest.mark.parametrize("place", range(len(BATCHES)))
def test_region_keyword_loss_by_batch(suite: Suite, place: int) -> None:
    batch = (BATCHES_CUDA if suite.on_cuda else BATCHES)[place]
    compete(
        suite,
        SMALL._replace(batch=batch, features=64),
        "xmc",
        torch.bfloat16 if suite.on_cuda else torch.float32,
        series=Series("region_keyword_loss over the batch", "batch", batch),
    )
