"""Text features of a batch: rows of the cache, and what they replace, a language model in every step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases.training_step import SENTENCE, random_features
from benchmarks.harness.result import OURS
from benchmarks.harness.suite import Suite, Timed

BATCH, CAPTIONS = 32, 20_000
#: Of all-MiniLM-L6-v2, and tokens of a caption of some ten words.
LAYERS, HEADS, WIDE, TOKENS = 6, 12, 1536, 16


@pytest.mark.importance(3)
@pytest.mark.quick
def test_text_cache(benchmark: Suite) -> None:
    cache, random, watch = random_features(CAPTIONS), torch.Generator().manual_seed(0), benchmark.watch
    ids = torch.randint(0, CAPTIONS, (BATCH,), generator=random)
    rows = cache.rows(ids)
    assert torch.equal(rows.sentence, torch.cat([cache.sentences(one[None]) for one in ids]))
    tokens = torch.randn(BATCH, TOKENS, SENTENCE, generator=random).to(benchmark.device)
    layer = nn.TransformerEncoderLayer(SENTENCE, HEADS, WIDE, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, LAYERS).to(benchmark.device).eval().requires_grad_(False)

    def look_up() -> None:
        for part in cache.rows(ids):
            part.to(benchmark.device, non_blocking=True)

    @torch.no_grad()
    def encode() -> Tensor:
        return model(tokens)

    benchmark.compare(
        {
            OURS: Timed(watch.sampler(look_up), form="text cache"),
            "language model of MiniLM's size": Timed(watch.sampler(encode)),
        },
        f"{BATCH} of {CAPTIONS} captions",
        operator="text features",
        work={"captions": BATCH},
    )
