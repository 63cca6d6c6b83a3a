"""What can be chosen of an evaluation. Torch is not imported here, so that `--help` is quick."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

Metric = Literal["fid", "kid", "pr", "retrieval", "clip", "r-precision", "spread", "attributes"]
#: Those that are computed of the features of an extractor.
EXTRACTED: tuple[Metric, ...] = ("kid", "pr", "retrieval")
Negatives = Literal["any", "other-class"]
Protocol = Literal["default", "df-gan"]


def needs_extractor(metrics: Iterable[Metric]) -> bool:
    """Whether any of these is computed of the features of an extractor."""
    return not set(EXTRACTED).isdisjoint(metrics)
