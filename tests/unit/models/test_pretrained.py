"""Model folders of every format that there has been."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from fastt2i.errors import UserError
from fastt2i.files.tensors import NotFinite
from fastt2i.models.model_card import model_card
from fastt2i.models.pretrained import load_pretrained, save_pretrained
from fastt2i.text.keywords import load_stop_words
from fastt2i.text.language_model import DECISIVE_FILES


def digest_of_bytes(directory: Path) -> str:
    """A language model's, as format 1 has it: names, sizes and contents of the files that decide its features."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in DECISIVE_FILES):
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture
def first_format(model_folder: Path, language_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    header = json.loads((folder / "config.json").read_text())
    del header["stop_words"], header["sha256"]["config"]
    header |= {"format": 1, "text": header["text"] | {"sha256": digest_of_bytes(language_model)}}
    (folder / "config.json").write_text(json.dumps(header))
    return folder


def test_a_folder_of_the_first_format_is_read(first_format: Path, language_model: Path) -> None:
    model = load_pretrained(first_format)
    assert model.stop_words == load_stop_words("english")
    encoder = model.load_text_encoder(torch.device("cpu"))
    assert encoder.is_noted_as(model.text_digest, ()) and encoder.digest != model.text_digest


def test_another_language_model_is_refused_in_the_first_format_too(first_format: Path) -> None:
    header = json.loads((first_format / "config.json").read_text())
    header["text"]["sha256"] = "0" * 64
    (first_format / "config.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="not the one of the training"):
        load_pretrained(first_format).load_text_encoder(torch.device("cpu"))


def test_a_format_of_the_future_is_one_sentence(first_format: Path) -> None:
    header = json.loads((first_format / "config.json").read_text())
    (first_format / "config.json").write_text(json.dumps(header | {"format": 3}))
    with pytest.raises(UserError, match="has format 3; this version reads formats 1 and 2"):
        load_pretrained(first_format)


def test_a_value_of_the_configuration_that_has_changed_is_found(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    header = json.loads(config.read_text())
    header["idf"] = {word: value + 1e-3 for word, value in header["idf"].items()}
    config.write_text(json.dumps(header))
    with pytest.raises(UserError, match=f"{config} is damaged: .* its values are not those whose SHA-256 was noted"):
        load_pretrained(tmp_path / "model")


def test_the_place_of_the_language_model_may_be_changed(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    header = json.loads(config.read_text())
    header["text"]["model"] = "another/place"
    config.write_text(json.dumps(header, indent=4))
    assert load_pretrained(tmp_path / "model").text.model == "another/place"


def test_weights_that_are_not_finite_are_not_saved(model_folder: Path, tmp_path: Path) -> None:
    model = load_pretrained(model_folder)
    next(model.generator.parameters()).data.view(-1)[0] = float("inf")
    with pytest.raises(NotFinite, match=r"\S+ of the generator is not finite"):
        save_pretrained(model, tmp_path / "model", model_card(model), {})
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_not_utf_8_are_read_as_they_were(model_folder: Path, tmp_path: Path) -> None:
    """A data set or an output folder may have such a name."""
    model = load_pretrained(model_folder)
    model.facts = {**model.facts, "data": "caf\udce9"}
    save_pretrained(model, tmp_path / "model", model_card(model, "runs/\udce9"), {})
    assert load_pretrained(tmp_path / "model").facts["data"] == "caf\udce9"
    assert '"runs/\\udce9"' in (tmp_path / "model" / "README.md").read_text("utf-8")
