"""Characters that part words for a reader and not for a tokenizer."""

from __future__ import annotations

import re
import unicodedata

# Pictographs with what may follow one: a variation selector, a skin tone, a joiner and the next pictograph.
_PICTOGRAPH = "[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff]"
_EMOJI = re.compile(f"({_PICTOGRAPH}(?:[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff]|\u200d{_PICTOGRAPH})*)")
_JOINERS = "\u200c\u200d"  # parts of words in the scripts of Persia and India, and of emoji
_SOFT_HYPHEN = "\u00ad"  # says where a word may be broken, and is no part of it


def separate_words(text: str) -> str:
    """The text with spaces where replacement characters (U+FFFD), invisible format characters or emoji part words.

    Tokenizers drop the first two and join what is around them to one word, and take a word with an emoji for unknown.
    Soft hyphens are dropped. Joiners stay within words of scripts that need them, and within emoji.
    """
    if text.isascii():
        return text
    text = _EMOJI.sub(r" \1 ", text.replace(_SOFT_HYPHEN, ""))
    return "".join(_separated(text, place) for place in range(len(text)))


def _separated(text: str, place: int) -> str:
    character = text[place]
    if character in _JOINERS:
        before = text[place - 1 : place]
        return character if before >= "\u0590" and unicodedata.category(before)[0] in "LMS" else " "
    return " " if character == "\ufffd" or unicodedata.category(character) == "Cf" else character
