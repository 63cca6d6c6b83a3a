"""How much of the captions a language model can read: words it does not know, and captions that are one to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class CaptionCoverage:
    """Counts the captions of a set that a language model reads in part, or not apart from others.

    Args:
        unknown_token: the number of the token that stands for any unknown word; None where words always have pieces.
        normalize: what the tokenizer takes a text for before it cuts it, in lower case where that is all it knows.

    Attributes:
        captions: counted so far.
        unknown: of these, captions with a word that the model does not know.
    """

    def __init__(self, unknown_token: int | None, normalize: Callable[[str], str]) -> None:
        self.captions = self.unknown = 0
        self._unknown_token, self._normalize = unknown_token, normalize
        self._first: dict[int, str] = {}
        self._repeated: dict[int, list[str]] = {}

    def add(self, caption: str, ids: Sequence[int]) -> None:
        """Count a caption and its tokens, as far as the model reads. The captions counted are distinct."""
        self.captions += 1
        self.unknown += self._unknown_token in ids
        key = hash(tuple(ids))
        if key in self._first:
            self._repeated.setdefault(key, [self._first[key]]).append(caption)
        else:
            self._first[key] = caption

    def indistinct(self) -> int:
        """How many captions have the tokens of another one that says something else, and so the same features."""
        return sum(len(same) for same in self._repeated.values() if len(set(map(self._read_as, same))) > 1)

    def _read_as(self, caption: str) -> str:
        return " ".join(self._normalize(caption).split())

    def sentence(self, model: str) -> str | None:
        """What to tell of it, with shares; None where nothing is lost. model: its name."""
        told = []
        if self.unknown:
            told.append(f"{self._share(self.unknown)} have words that {model} does not know")
        if indistinct := self.indistinct():
            told.append(f"{self._share(indistinct)} have the same features as another one that says something else")
        remedy = "--text.model names another language model, as for other languages or longer captions"
        return f"{', and '.join(told)}; {remedy}" if told else None

    def _share(self, count: int) -> str:
        return f"{count:,} of {self.captions:,} captions ({count / self.captions:.1%})"
