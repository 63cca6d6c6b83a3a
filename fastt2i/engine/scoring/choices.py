"""What can be chosen of an evaluation. Torch is not imported here, so that `--help` is quick."""

from __future__ import annotations

from typing import Literal

Metric = Literal["fid", "kid", "pr", "clip", "r-precision", "spread", "attributes"]
Negatives = Literal["any", "other-class"]
Protocol = Literal["default", "df-gan"]
