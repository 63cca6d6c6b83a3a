"""What can be chosen of an evaluation. Torch is not imported here, so that `--help` is quick."""

from __future__ import annotations

from typing import Literal

Metric = Literal["fid", "kid", "pr", "retrieval", "clip", "r-precision", "spread", "attributes"]
#: Those that are computed of the features of an extractor.
EXTRACTED: tuple[Metric, ...] = ("kid", "pr", "retrieval")
Negatives = Literal["any", "other-class"]
Protocol = Literal["default", "df-gan"]
