"""Model folders: weights in safetensors, everything else in `config.json`, a model card for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastt2i.config import ModelConfig, TextConfig, read_section
from fastt2i.errors import UserError
from fastt2i.files.atomic import new_directory, write_file
from fastt2i.files.tensors import load_tensors, save_tensors
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.text.encoder import TextEncoder

CONFIG_FILE = "config.json"
FORMAT = 1


@dataclass(kw_only=True)
class PretrainedModel:
    """A trained generator, the discriminator that scored it, and the language model both were trained with.

    Attributes:
        config: sizes of both networks.
        text: which language model, and how keywords are chosen.
        text_digest: SHA-256 of that language model's files.
        sentence_dim: size of its sentence feature.
        idf: inverse document frequencies of the training captions' words.
        generator: the moving average of the generator.
        discriminator: the discriminator.
        facts: what the training was, in plain values: steps, data, measured accuracy.
    """

    config: ModelConfig
    text: TextConfig
    text_digest: str
    sentence_dim: int
    idf: Mapping[str, float]
    generator: Generator
    discriminator: Discriminator
    facts: Mapping[str, Any] = field(default_factory=dict)

    def load_text_encoder(self, device: torch.device) -> TextEncoder:
        """The language model, checked to be the one of the training.

        Raises:
            UserError: it cannot be found, or another one goes by its name here.
        """
        encoder = TextEncoder(
            self.text.model,
            max_keywords=self.text.max_keywords,
            stop_words=self.text.stop_words,
            device=device,
            idf=self.idf,
        )
        if encoder.digest != self.text_digest:
            raise UserError(
                f"the language model {self.text.model} found here is not the one of the training (SHA-256 "
                f"{encoder.digest[:12]} instead of {self.text_digest[:12]}); set the model folder's text.model to it"
            )
        return encoder


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
            "idf": dict(model.idf),
        }
        write_file(temporary / CONFIG_FILE, json.dumps(header, indent=1, ensure_ascii=False).encode())
        write_file(temporary / "README.md", card.encode())
        for name, content in pictures.items():
            write_file(temporary / name, content)


def load_pretrained(directory: Path) -> PretrainedModel:
    """Read a model folder, or the run directory that holds one; nothing in it is executed.

    Raises:
        UserError: there is no model, or a file of it is missing or damaged.
    """
    path = directory / CONFIG_FILE
    if not path.is_file() and (directory / "model" / CONFIG_FILE).is_file():
        directory, path = directory / "model", directory / "model" / CONFIG_FILE
    if not path.is_file():
        raise UserError(
            f"{directory} holds no model: a model folder has a {CONFIG_FILE}, as `model/` in a run directory"
        )
    try:
        header = json.loads(path.read_bytes())
        if header["format"] != FORMAT:
            raise UserError(f"{path} has format {header['format']}; this version reads format {FORMAT}")
        text = dict(header["text"])
        digest, sentence_dim = text.pop("sha256"), text.pop("sentence_dim")
        config = read_section(ModelConfig, header["model"], str(path))
        model = PretrainedModel(
            config=config,
            text=read_section(TextConfig, text, str(path)),
            text_digest=digest,
            sentence_dim=sentence_dim,
            idf=header["idf"],
            generator=Generator(config, sentence_dim),
            discriminator=Discriminator(config, sentence_dim, sentence_dim),
            facts=header["facts"],
        )
        digests = {name: header["sha256"][name] for name in ("generator", "discriminator")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    for name, module in (("generator", model.generator), ("discriminator", model.discriminator)):
        module.load_state_dict(load_tensors(directory / f"{name}.safetensors", digests[name]))
        module.eval().requires_grad_(False)
    return model
