"""Keywords: the content words of a caption."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path

from fastt2i.errors import UserError


def load_stop_words(name: str) -> frozenset[str]:
    """`english`, `none`, or the words of a file, separated by white space; in lower case.

    The English list has no word that names what a picture shows: `left`, `above`, `two` and `no` stay keywords.

    Raises:
        UserError: the file cannot be read.
    """
    if name == "none":
        return frozenset()
    try:
        text = (
            resources.files("fastt2i.models").joinpath("stop_words.txt").read_text()
            if name == "english"
            else Path(name).read_text("utf-8")
        )
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"text.stop_words is {name!r}, which cannot be read ({error}); give `english`, `none` or a text file"
        ) from error
    return frozenset(text.lower().split())


def is_word(text: str) -> bool:
    """Whether a text has anything in it but punctuation, symbols and white space."""
    return any(unicodedata.category(c)[0] in "LNM" for c in text)


def inverse_document_frequencies(captions: Iterable[Iterable[str]]) -> dict[str, float]:
    """Smoothed idf of every word, log((1 + N) / (1 + df)) + 1, from the words of N captions; words in lower case."""
    documents: Counter[str] = Counter()
    count = 0
    for words in captions:
        documents.update({word.lower() for word in words})
        count += 1
    return {word: math.log((1 + count) / (1 + df)) + 1 for word, df in sorted(documents.items())}


def select_keywords(
    words: Sequence[str], stop_words: frozenset[str], idf: Mapping[str, float], max_keywords: int
) -> list[int]:
    """Which words of a caption are its keywords.

    Words that are neither punctuation nor stop words; where there are none, all words; where there are more than
    `max_keywords`, those of the highest idf (a word that was never seen is the rarest; of equals the first ones stay).

    Args:
        words: the caption's words in order.
        stop_words: in lower case.
        idf: inverse document frequencies of words in lower case.
        max_keywords: how many to keep.

    Returns:
        their places, in the caption's order.
    """
    spoken = [place for place, word in enumerate(words) if is_word(word)] or list(range(len(words)))
    chosen = [place for place in spoken if words[place].lower() not in stop_words] or spoken
    rarest_first = sorted(chosen, key=lambda place: -idf.get(words[place].lower(), math.inf))
    return sorted(rarest_first[:max_keywords])
