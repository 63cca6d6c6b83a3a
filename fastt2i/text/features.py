"""Sentence and keyword features of captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class TextFeatures(NamedTuple):
    """Features of N captions.

    sentence: (N, d) float, of length sqrt(d); keywords: (N, T, d) float, likewise, zero where there is none; mask:
    (N, T) bool, true where a keyword is.
    """

    sentence: Tensor
    keywords: Tensor
    mask: Tensor
