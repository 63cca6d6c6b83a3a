"""BERT, read without transformers: tokens and features are the same to the last bit; other folders are left to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fastt2i.text.any_family import read_any_family
from fastt2i.text.bert import read_bert
from fastt2i.text.language_model import find_language_model
from tests.unit.text.small_language_models import bert, distilbert

PIECES = ["a", " ", "unbelievable", "RED", "é", "日本", "[UNK]", "[MASK]", "!", "\n", "\u00ad", "😀", "x" * 101]


#: Ours, where it takes a folder, and that of transformers; see `read_bert`.
Readers = tuple[tuple[Any, Any, int] | None, tuple[Any, Any, int]]


def change(path: Path, **settings: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.fixture(scope="module", params=["small", "default"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "small":
        return bert(tmp_path_factory.mktemp("bert"))
    found = find_language_model("all-MiniLM-L6-v2")
    if not found.local:
        pytest.skip("the default language model is not installed")
    return Path(found.locations[0])


@pytest.fixture(scope="module")
def readers(folder: Path) -> Readers:
    return read_bert(folder), read_any_family(folder)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 8), (65, 13)])
def test_features_are_those_of_transformers(readers: Readers, shape: tuple[int, int]) -> None:
    ours, theirs = readers
    assert ours is not None and ours[2] == theirs[2]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, ours[0].backend.get_vocab_size(), shape, generator=generator)
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=generator)
    for mask in (torch.ones_like(ids), (torch.arange(shape[1]) < lengths).long()):
        with torch.no_grad():
            assert torch.equal(ours[1].eval()(ids, mask)[mask.bool()], theirs[1](ids, mask)[mask.bool()])


@pytest.mark.hypothesis
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), min_size=1, max_size=3))
@example(["a red bird " * 300])
def test_tokens_are_those_of_transformers(readers: Readers, texts: list[str]) -> None:
    ours, theirs = readers
    assert ours is not None and ours[0].padding == theirs[0].padding and ours[0].unknown == theirs[0].unknown
    for options in ({}, {"whole": True}, {"whole": True, "special": False}):
        for own, other in zip(ours[0](texts, **options), theirs[0](texts, **options), strict=True):
            assert (own.ids, own.word_ids, own.offsets) == (other.ids, other.word_ids, other.offsets)


UNUSUAL: dict[str, Callable[[Path], object]] = {
    "activation": lambda folder: change(folder / "config.json", hidden_act="gelu_new"),
    "decoder": lambda folder: change(folder / "config.json", is_decoder=True),
    "another tokenizer": lambda folder: change(
        folder / "tokenizer_config.json", tokenizer_class="BertJapaneseTokenizer"
    ),
    "settings against the file": lambda folder: change(folder / "tokenizer_config.json", do_lower_case=False),
    "missing weights": lambda folder: change(folder / "config.json", num_hidden_layers=3),
    "other shapes": lambda folder: change(folder / "config.json", hidden_size=64),
    "no tokenizer file": lambda folder: (folder / "tokenizer.json").unlink(),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "damaged weights": lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 100),
    "damaged settings": lambda folder: (folder / "config.json").write_text("{"),
}


@pytest.mark.parametrize("what", UNUSUAL)
def test_other_folders_are_left_to_transformers(tmp_path: Path, what: str) -> None:
    folder = bert(tmp_path / "unusual")
    assert read_bert(folder) is not None
    UNUSUAL[what](folder)
    assert read_bert(folder) is None


def test_other_families_are_left_to_transformers(tmp_path: Path) -> None:
    assert read_bert(distilbert(tmp_path / "distilbert")) is None
