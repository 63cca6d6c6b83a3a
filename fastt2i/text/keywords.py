"""Keywords: the content words of a caption."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from fastt2i.errors import UserError


class Words(NamedTuple):
    """A caption cut into words.

    texts: the words in order; of_token: for every token the place of its word in `texts`, or None.
    """

    texts: list[str]
    of_token: list[int | None]


def load_stop_words(name: str) -> frozenset[str]:
    """`english`, `none`, or the words of a file, separated by white space; in lower case.

    The English list has no word that names what a picture shows: `left`, `above`, `one`, `two`, `no` and `without` stay
    keywords.

    Raises:
        UserError: the file cannot be read.
    """
    if name == "none":
        return frozenset()
    try:
        text = (
            resources.files("fastt2i.text").joinpath("stop_words.txt").read_text("utf-8")
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


def assemble_words(caption: str, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> Words:
    """Put the words of a caption together from a tokenizer's pieces.

    Tokenizers differ in what they call a word: `"red",` is three for BERT's and one for T5's, and some take the whole
    caption for one. Here a word is a run of letters, marks and digits, cut further where the tokenizer cuts; what is
    between runs, such as punctuation, makes words of its own.

    Args:
        caption: the text.
        word_ids: for every token the tokenizer's number of its word, None for special tokens.
        offsets: for every token the characters [start, end) of the caption that it stands for.
    """
    run_of = _runs(caption)
    spans: list[tuple[int, int]] = []
    of_token: list[int | None] = []
    last_key: tuple[int, int | None] | None = None
    for word_id, (start, end) in zip(word_ids, offsets, strict=True):
        if word_id is None or not caption[start:end].strip():
            of_token.append(None)
            continue
        run = next((run for run in run_of[start:end] if run is not None), None)
        inside = [place for place in range(start, end) if run_of[place] == run]
        first, last = inside[0], inside[-1] + 1
        if (word_id, run) == last_key:
            spans[-1] = min(spans[-1][0], first), max(spans[-1][1], last)
        else:
            spans.append((first, last))
            last_key = word_id, run
        of_token.append(len(spans) - 1)
    return Words([caption[start:end].strip() for start, end in spans], of_token)


def _runs(caption: str) -> list[int | None]:
    """For every character the number of its run of letters, marks and digits, None for a character of another kind."""
    runs: list[int | None] = []
    for number, (spoken, characters) in enumerate(groupby(caption, key=is_word)):
        runs += [number if spoken else None for _ in characters]
    return runs


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
