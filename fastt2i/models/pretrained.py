"""Model folders: weights in safetensors, everything else in `config.json`, a model card for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastt2i.config import ModelConfig, TextConfig
from fastt2i.errors import UserError
from fastt2i.files.atomic import new_directory, sha256, write_file
from fastt2i.files.tensors import load_tensors, save_tensors, tensors_digest
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.models.hub import find_model
from fastt2i.models.size_limit import AtMost
from fastt2i.sections import read_section
from fastt2i.text.encoder import TextEncoder
from fastt2i.text.keywords import load_stop_words

CONFIG_FILE = "config.json"
#: The format that is written, and those that are read. Since 2 stop words are inside, and the language model's digest
#: leaves out which version of transformers wrote it.
FORMAT, READ_FORMATS = 2, (1, 2)

#: Numbers that nobody notices in the memory.
UNNOTICED = 2**24


@dataclass(kw_only=True)
class PretrainedModel:
    """A trained generator, the discriminator that scored it, and the language model both were trained with.

    Attributes:
        config: sizes of both networks.
        text: which language model, and how keywords are chosen.
        text_digest: SHA-256 of what decides that language model's features.
        text_sample: some of its features, as `TextEncoder.sample`; empty in folders that have none.
        stop_words: words that are no keywords, in lower case.
        sentence_dim: size of its sentence feature.
        idf: inverse document frequencies of the training captions' words.
        generator: the moving average of the generator.
        discriminator: the discriminator.
        facts: what the training was, in plain values: steps, data, measured accuracy.
        folder: where it was read from; a language model may be beside it.
    """

    config: ModelConfig
    text: TextConfig
    text_digest: str
    stop_words: frozenset[str]
    sentence_dim: int
    idf: Mapping[str, float]
    generator: Generator
    discriminator: Discriminator
    facts: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    text_sample: Sequence[float] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the generator's weights: which model an image is of."""
        return tensors_digest(self.generator.state_dict())

    def load_text_encoder(self, device: torch.device) -> TextEncoder:
        """The language model, checked to be the one of the training.

        Raises:
            UserError: it cannot be found, or another one goes by its name here.
        """
        encoder = TextEncoder(
            self.language_model,
            max_keywords=self.text.max_keywords,
            stop_words=self.stop_words,
            device=device,
            idf=self.idf,
        )
        if not encoder.is_noted_as(self.text_digest, self.text_sample):
            raise UserError(
                f"the language model {self.text.model} found here is not the one of the training (SHA-256 "
                f"{encoder.digest[:12]} instead of {self.text_digest[:12]}); set the model folder's text.model to it"
            )
        return encoder

    @property
    def language_model(self) -> str:
        """The language model's name, or its directory: it may be in the model folder or beside it."""
        name = self.text.model
        if self.folder is None or (Path(name).is_absolute() and Path(name).is_dir()):
            return name
        places = [place / end for end in (name, Path(name).name) for place in (self.folder, self.folder.parent)]
        return next((str(place) for place in places if place.is_dir()), name)


def save_pretrained(model: PretrainedModel, directory: Path, card: str, pictures: Mapping[str, bytes]) -> None:
    """Write a model folder: it is replaced as a whole, or not at all.

    Args:
        model: what to save.
        directory: the folder.
        card: the model card, Markdown.
        pictures: PNG files that the card shows, by name.
    """
    networks: dict[str, nn.Module] = {"generator": model.generator, "discriminator": model.discriminator}
    with new_directory(directory) as temporary:
        digests = {
            name: save_tensors(temporary / f"{name}.safetensors", m.state_dict()) for name, m in networks.items()
        }
        header = {
            "format": FORMAT,
            "model": dataclasses.asdict(model.config),
            "text": dataclasses.asdict(model.text) | {"sha256": model.text_digest, "sentence_dim": model.sentence_dim},
            "sha256": digests,
            "facts": dict(model.facts),
            "stop_words": sorted(model.stop_words),
            "idf": dict(model.idf),
            "text_sample": list(model.text_sample),
        }
        digests["config"] = _config_digest(header)
        # Names of folders may hold bytes that are not UTF-8: as JSON escapes, they are read as they were.
        content = json.dumps(header, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")
        write_file(temporary / CONFIG_FILE, content)
        write_file(temporary / "README.md", card.encode("utf-8", "backslashreplace"))
        for name, content in pictures.items():
            write_file(temporary / name, content)


def saved_steps(folder: Path) -> int | None:
    """How many steps the model in a folder was trained for; None where there is no model that says so."""
    try:
        return int(json.loads((folder / CONFIG_FILE).read_bytes())["facts"]["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_pretrained(folder: str | Path, *, revision: str | None = None, offline: bool = False) -> PretrainedModel:
    """Read a model folder, the one in a run directory, or one from the hub; nothing in it is executed.

    Args:
        folder: the folder, or `user/name` on the hub.
        revision: branch, tag or commit on the hub.
        offline: take what the hub's cache has, and ask no network.

    Raises:
        UserError: there is no model, or a file of it is missing or damaged.
    """
    directory = find_model(folder, revision, offline)
    path = directory / CONFIG_FILE
    if not path.is_file() and (directory / "model" / CONFIG_FILE).is_file():
        directory, path = directory / "model", directory / "model" / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} holds no model: a model folder has a {CONFIG_FILE}, as `model/` in a run directory"
        )
    try:
        header = json.loads(path.read_bytes())
        if header["format"] not in READ_FORMATS:
            formats = " and ".join(map(str, READ_FORMATS))
            raise UserError(f"{path} has format {header['format']}; this version reads formats {formats}")
        if header["sha256"].get("config", digest := _config_digest(header)) != digest:
            raise ValueError("its values are not those whose SHA-256 was noted when it was saved")
        return _from_header(header, directory, str(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _config_digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of the values of a `config.json`, but for the language model's place, which may be set by hand."""
    values = {name: value for name, value in header.items() if name != "sha256"}
    values["text"] = {name: value for name, value in values["text"].items() if name != "model"}
    return sha256(json.dumps(values, sort_keys=True).encode())


def _from_header(header: dict[str, Any], directory: Path, where: str) -> PretrainedModel:
    """The model that a `config.json` describes, with the weights beside it."""
    text = dict(header["text"])
    digest, sentence_dim = text.pop("sha256"), text.pop("sentence_dim")
    config, text_config = read_section(ModelConfig, header["model"], where), read_section(TextConfig, text, where)
    stop_words = header["stop_words"] if header["format"] >= 2 else load_stop_words(text_config.stop_words)
    idf, facts = header["idf"], header["facts"]
    files = [directory / f"{name}.safetensors" for name in ("generator", "discriminator")]
    weights = [load_tensors(file, header["sha256"][file.stem]) for file in files]
    numbers = sum(tensor.numel() for tensors in weights for tensor in tensors.values())
    # Not on the meta device: the first tensor there imports torch's compiler, which takes longer than drawing weights.
    # A layer of another shape is told by its name below; here only what would fill the memory before.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]), AtMost(numbers + UNNOTICED):
        generator = Generator(config, sentence_dim)
        discriminator = Discriminator(config, sentence_dim, sentence_dim)
    for module, file, tensors in zip((generator, discriminator), files, weights, strict=True):
        _take_weights(module, file, tensors)
    return PretrainedModel(
        config=config,
        text=text_config,
        text_digest=digest,
        stop_words=frozenset(stop_words),
        sentence_dim=sentence_dim,
        idf=idf,
        generator=generator,
        discriminator=discriminator,
        facts=facts,
        folder=directory,
        text_sample=header.get("text_sample", ()),
    )


def _take_weights(module: nn.Module, path: Path, tensors: Mapping[str, Tensor]) -> None:
    """The file's tensors become the module's, in float32 and on the CPU whatever torch's defaults are."""
    try:
        module.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"{path} does not fit the {CONFIG_FILE} beside it: {str(error).splitlines()[-1].strip()}"
        ) from error
    module.eval().requires_grad_(False)
