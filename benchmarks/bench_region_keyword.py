"""The region-keyword loss, forward and backward, beside its definition in PyTorch and AttnGAN's loop over captions.

    python -m pytest benchmarks/bench_region_keyword.py --benchmark-only -s

What is compared is checked against the definition in float64 first. Captions have 1 to T keywords, evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import peak
from benchmarks.turns import in_turns
from fastt2i.ops import region_keyword_loss, region_keyword_scores
from fastt2i.ops.agreement import disagreement, expected, results

#: Images and captions, regions, keywords of a caption, features; rounds on a CPU.
SHAPES = {(64, 64, 16, 256): 21, (128, 256, 16, 256): 5, (48, 289, 18, 256): 15}
#: Of AttnGAN (for birds) and XMC-GAN.
GAMMAS = {"damsm": (4.0, 5.0, 10.0), "xmc": (5.0, 5.0, 50.0)}


def words_loss(regions: Tensor, keywords: Tensor, lengths: list[int], gammas: tuple[float, float, float]) -> Tensor:
    """AttnGAN's form of the loss: caption after caption, against all images at once."""
    attention_gamma, pooling_gamma, matching_gamma = gammas
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


@pytest.mark.parametrize("variant", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_region_keyword_loss(
    benchmark: Any, shape: tuple[int, int, int, int], variant: str, device: torch.device
) -> None:
    batch, regions, count, features = shape
    random, scale = torch.Generator().manual_seed(0), features**-0.25
    v, e = (
        (scale * torch.randn(batch, rows, features, generator=random)).to(device).requires_grad_()
        for rows in (regions, count)
    )
    lengths = [row % count + 1 for row in range(batch)]
    mask = (torch.arange(count) < torch.tensor(lengths)[:, None]).to(device)
    gammas = GAMMAS[variant]

    scores = {
        impl: partial(
            region_keyword_scores,
            variant=variant,
            gamma_attention=gammas[0],
            gamma_pooling=gammas[1],
            impl=impl,
        )
        for impl in (None, "reference")
    }
    right = expected(scores["reference"], (v, e, mask), training=True)
    assert disagreement(results(scores[None], (v, e, mask), training=True), right) is None

    def loss(impl: str | None) -> Tensor:
        names = ("gamma_attention", "gamma_pooling", "gamma_matching")
        return region_keyword_loss(v, e, mask, variant=variant, impl=impl, **dict(zip(names, gammas, strict=True)))

    def train(make: Callable[[], Tensor]) -> None:
        torch.autograd.grad(make(), (v, e))

    candidates = {"reference": partial(loss, "reference"), "ours": partial(loss, None)}
    if variant == "damsm" and batch < 128:
        candidates["AttnGAN's loop"] = partial(words_loss, v, e, lengths, gammas)
        torch.testing.assert_close(candidates["AttnGAN's loop"](), candidates["ours"]())
    benchmark.group = f"region_keyword_loss {variant} (B, R, T, D) = {shape}, forward and backward"
    turns = {name: partial(train, make) for name, make in candidates.items()}
    in_turns(benchmark, turns, rounds=SHAPES[shape], warm_up=1)
    for name, run in turns.items():
        benchmark.extra_info[name]["peak_bytes"] = peak(run, device)
        print(f"  {name:34} {benchmark.extra_info[name]['peak_bytes'] / 2**20:9.1f} MiB")
