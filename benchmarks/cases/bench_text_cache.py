"""Text features of a batch: rows of the cache, and what they replace, a language model in every step."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases.training_step import SENTENCE, captions_features
from benchmarks.conftest import Suite
from benchmarks.harness.comparison import Contender, Contest
from benchmarks.harness.result import OURS
from benchmarks.harness.timing import Stopwatch

BATCH, CAPTIONS = 32, 20_000
#: Of all-MiniLM-L6-v2, and tokens of a caption of some ten words.
LAYERS, HEADS, WIDE, TOKENS = 6, 12, 1536, 16


@pytest.mark.importance(3)
@pytest.mark.quick
def test_text_cache(suite: Suite) -> None:
    cache, random = captions_features(CAPTIONS), torch.Generator().manual_seed(0)
    ids = torch.randint(0, CAPTIONS, (BATCH,), generator=random)
    rows = cache.rows(ids)
    assert torch.equal(rows.sentence, torch.cat([cache.sentences(one[None]) for one in ids]))
    tokens = torch.randn(BATCH, TOKENS, SENTENCE, generator=random).to(suite.device)
    layer = nn.TransformerEncoderLayer(SENTENCE, HEADS, WIDE, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, LAYERS).to(suite.device).eval().requires_grad_(False)

    def look_up() -> None:
        for part in cache.rows(ids):
            part.to(suite.device, non_blocking=True)

    def encode() -> Tensor:
        with torch.no_grad():
            return model(tokens)

    watch = Stopwatch(suite.device)
    timed = partial(watch.timed, part="step")
    contest = Contest("text features", f"{BATCH} of {CAPTIONS} captions", "", "step", work={"captions": BATCH})
    suite.hold(
        contest,
        {
            OURS: Contender(timed(look_up), "ours", "text cache"),
            "language model of MiniLM's size": Contender(timed(encode)),
        },
    )
