"""What `serve` does without a model: mistakes that it finds, and memory that it gives back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastt2i.errors import UserError
from fastt2i.request import Request
from fastt2i.serve import batching
from fastt2i.serve.__main__ import main


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--max-num", "0"], "--max-num is 0; it must be 1 or more"),
        (["--max-num", "65"], "--max-num is 65; it must be --max-candidates, 64, or less"),
    ],
)
def test_limits_that_no_request_fits(options: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        main(["--model", "nowhere", *options])


@pytest.mark.parametrize(("seconds", "times"), [(0.0, 3), (60.0, 0)])
def test_free_memory_goes_back_to_the_system(seconds: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[float] = []
    monkeypatch.setattr(batching, "GIVE_BACK_EVERY", seconds)
    monkeypatch.setattr(batching, "give_back_freed_memory", lambda: given_back.append(seconds))
    pipeline: Any = SimpleNamespace(draw=lambda requests, scores: requests)
    batcher = batching.Batcher(pipeline, max_images=4, max_waiting=4)
    for seed in range(3):
        request: Any = Request(prompt="a red circle", seed=seed)
        assert batcher.submit(request).result() is request
    batcher.stop(1)
    batcher.join()
    assert len(given_back) == times
