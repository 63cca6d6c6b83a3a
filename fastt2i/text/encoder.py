"""The frozen language model: captions to sentence and keyword features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from tokenizers import Encoding
from torch.nn.utils.rnn import pad_sequence

from fastt2i.text.coverage import CaptionCoverage
from fastt2i.text.features import TextFeatures
from fastt2i.text.keywords import (
    Words,
    assemble_words,
    inverse_document_frequencies,
    load_stop_words,
    select_keywords,
)
from fastt2i.text.language_model import language_model_digest, language_model_digest_of_bytes, load_language_model
from fastt2i.text.normalize import separate_words
from fastt2i.text.sentence import SentenceNetwork, to_unit_variance

BATCH_SIZE = 128
#: Captions whose features tell a language model from others, how many numbers of each are kept, and how far these may
#: differ between machines, or where the model was saved anew with fewer digits. Their root mean square is 1.
_SAMPLE_CAPTIONS = ("a small red bird with a white belly sits on a branch", "Two people and 3 dogs, at the beach!")
_SAMPLE_NUMBERS, _SAMPLE_TOLERANCE = 32, 1e-2


class TextEncoder:
    """Features of captions from a frozen language model.

    The sentence feature is pooled from the token features as the model's sentence-transformers settings say, their mean
    by default; a keyword's feature is the mean of its word pieces'. All are scaled to length sqrt(d).

    Args:
        model: a directory or a model's name.
        max_keywords: keywords kept of a caption.
        stop_words: `english`, `none` or a file of words; or the words themselves, in lower case.
        device: where the model runs.
        idf: inverse document frequencies of words; see `fit_idf`.

    Attributes:
        name: as given.
        digest: SHA-256 of the model's weights, tokenizer and settings.
        sentence_dim: d, the size of all features.
        tokenizer: of the model.
        network: the model, from tokens to features.

    Raises:
        UserError: the model cannot be found or used.
    """

    def __init__(
        self,
        model: str = "all-MiniLM-L6-v2",
        *,
        max_keywords: int = 16,
        stop_words: str | frozenset[str] = "english",
        device: str | torch.device = "cpu",
        idf: Mapping[str, float] | None = None,
    ) -> None:
        self.name = model
        self.max_keywords = max_keywords
        self.stop_words = load_stop_words(stop_words) if isinstance(stop_words, str) else stop_words
        self.idf: Mapping[str, float] = dict(idf or {})
        self.device = torch.device(device)
        with torch.device("cpu"):  # whatever torch's default device is
            self._directory, self.tokenizer, network, self.sentence_dim, pooling = load_language_model(model)
        self.network = SentenceNetwork(network, pooling).to(self.device).eval().requires_grad_(False)
        self.digest = language_model_digest(self._directory)

    @cached_property
    def sample(self) -> list[float]:
        """Some numbers of the features of some captions, by which a model is known whatever its files are."""
        return self(_SAMPLE_CAPTIONS).sentence[:, :_SAMPLE_NUMBERS].flatten().tolist()

    def is_noted_as(self, digest: str, sample: Sequence[float]) -> bool:
        """Whether the model is the one that was noted by this digest, in this version or an older one, or gives such
        features: libraries write the same model in other files. sample: empty where none was noted.
        """
        if digest == self.digest or digest == language_model_digest_of_bytes(self._directory):
            return True
        return len(sample) == len(self.sample) and all(
            abs(mine - noted) <= _SAMPLE_TOLERANCE for mine, noted in zip(self.sample, sample, strict=True)
        )

    def fit_idf(self, captions: Sequence[str]) -> CaptionCoverage:
        """Take the words' inverse document frequencies from these distinct captions, and say how it reads them."""
        coverage = CaptionCoverage(self.tokenizer.unknown_id, self.tokenizer.normalize)
        self.idf = inverse_document_frequencies(words.texts for words in self._words(_readable(captions), coverage))
        return coverage

    def keywords(self, caption: str) -> list[str]:
        """The keywords of a caption, in its order."""
        (words,) = self._words(_readable([caption]))
        return [words.texts[place] for place in self._select(words)]

    def truncated(self, captions: Sequence[str]) -> list[int]:
        """The places of captions that are longer than the model reads."""
        lengths = [len(encoded.ids) for encoded in self.tokenizer(_readable(captions), whole=True)]
        return [place for place, length in enumerate(lengths) if length > self.tokenizer.longest]

    def unknown(self, caption: str) -> bool:
        """Whether the model knows none of a caption's words."""
        (encoded,) = self.tokenizer(_readable([caption]), whole=True, special=False)
        return self.tokenizer.knows_none(encoded)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> TextFeatures:
        """Features of N captions, float32 on the encoder's device; a caption is read up to the model's longest input.

        Raises:
            ValueError: a caption is empty.
        """
        for place, caption in enumerate(captions):
            if not caption.strip():
                raise ValueError(f"caption {place} is empty")
        features = TextFeatures(
            torch.zeros(len(captions), self.sentence_dim, dtype=torch.float32, device=self.device),
            torch.zeros(len(captions), self.max_keywords, self.sentence_dim, dtype=torch.float32, device=self.device),
            torch.zeros(len(captions), self.max_keywords, dtype=torch.bool, device=self.device),
        )
        # Captions of like length share a batch, so that little is spent on padding.
        by_length = sorted(range(len(captions)), key=lambda place: len(captions[place]))
        captions = _readable(captions)
        with torch.autocast(self.device.type, enabled=False):  # that of a host program
            for start in range(0, len(captions), BATCH_SIZE):
                places = by_length[start : start + BATCH_SIZE]
                self._encode([captions[p] for p in places], places, features)
        return features

    def _encode(self, captions: list[str], places: list[int], into: TextFeatures) -> None:
        encoded = self.tokenizer(captions)
        # Padded on the right whatever the tokenizer prefers, for the places of tokens to be those of `encoded`. A
        # caption that the tokenizer makes nothing of is one padding token.
        padding = self.tokenizer.padding
        rows = [torch.tensor(each.ids or [padding], device="cpu") for each in encoded]
        ids = pad_sequence(rows, batch_first=True, padding_value=padding).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        attention_mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()
        hidden, sentence = self.network(ids, attention_mask)
        # Row (b, t) averages the pieces of caption b's keyword t.
        averaging = torch.zeros(len(captions), self.max_keywords, hidden.shape[1], dtype=hidden.dtype, device="cpu")
        for row, words in enumerate(_words_of(captions, encoded)):
            for slot, word in enumerate(self._select(words)):
                pieces = [token for token, of in enumerate(words.of_token) if of == word]
                averaging[row, slot, pieces] = 1 / len(pieces)
        where = torch.tensor(places, device=self.device)
        into.sentence[where] = sentence
        into.keywords[where] = to_unit_variance(averaging.to(self.device) @ hidden)
        into.mask[where] = averaging.any(dim=2).to(self.device)

    def _words(self, captions: Sequence[str], coverage: CaptionCoverage | None = None) -> Iterator[Words]:
        for start in range(0, len(captions), BATCH_SIZE):
            batch = captions[start : start + BATCH_SIZE]
            encoded = self.tokenizer(batch)
            if coverage:
                for caption, each in zip(batch, encoded, strict=True):
                    coverage.add(caption, each.ids)
            yield from _words_of(batch, encoded)

    def _select(self, words: Words) -> list[int]:
        return select_keywords(words.texts, self.stop_words, self.idf, self.max_keywords)


def _readable(captions: Sequence[str]) -> list[str]:
    """The captions with their words parted by spaces, and without halves of surrogate pairs, which are no text."""
    return [separate_words(caption.encode("utf-8", "replace").decode()) for caption in captions]


def _words_of(captions: Sequence[str], encoded: Sequence[Encoding]) -> Iterator[Words]:
    for caption, each in zip(captions, encoded, strict=True):
        yield assemble_words(caption, each.word_ids, each.offsets)
