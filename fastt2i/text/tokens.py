"""Captions cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

#: No caption is read further than this many tokens, whatever the model could take.
LONGEST = 512


class CaptionTokenizer:
    """A language model's tokenizer, used by one thread at a time.

    Args:
        backend: of the library tokenizers.
        unknown: the token that stands for any unknown word, None where words always have pieces.
        padding: number of the token that fills up a batch.
        longest: tokens that the model reads, and that longer captions are cut to, up to `LONGEST`.
        cut_at: the side on which they are cut: `right`, or `left`.
    """

    def __init__(
        self, backend: Tokenizer, *, unknown: str | None, padding: int, longest: int, cut_at: str = "right"
    ) -> None:
        self.backend = backend
        self.unknown = unknown
        self.padding = padding
        self.longest = min(longest, LONGEST)
        self._cut_at = cut_at
        backend.no_padding()

    def __call__(self, captions: Sequence[str], *, whole: bool = False, special: bool = True) -> list[Encoding]:
        """The tokens of each caption.

        Args:
            captions: the texts.
            whole: do not cut what is longer than the model reads.
            special: with the tokens that the model wants before and after a text.
        """
        if whole:
            self.backend.no_truncation()
        else:
            self.backend.enable_truncation(self.longest, direction=self._cut_at)
        return self.backend.encode_batch(list(captions), add_special_tokens=special)

    @property
    def unknown_id(self) -> int | None:
        """The number of the token `unknown`."""
        return None if self.unknown is None else self.backend.token_to_id(self.unknown)

    def knows_none(self, encoded: Encoding) -> bool:
        """Whether there is nothing but unknown words in a text, encoded without special tokens."""
        # SentencePiece puts a mark before every word, also before an unknown one.
        return {self.backend.id_to_token(number) for number in encoded.ids} <= {self.unknown, "▁"}

    def normalize(self, text: str) -> str:
        """What a text is taken for before it is cut, in lower case where that is all the model knows."""
        normalizer = self.backend.normalizer
        return normalizer.normalize_str(text) if normalizer else text
