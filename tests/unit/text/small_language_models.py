"""Language models of every family, small and untrained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

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


def distilbert(directory: Path) -> Path:
    from transformers import BertTokenizerFast, DistilBertConfig, DistilBertModel

    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(WORDS))
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=len(WORDS), max_position_embeddings=16, dim=32, n_layers=2, n_heads=2)
    return save(directory, DistilBertModel(config), BertTokenizerFast(vocab=str(directory / "vocab.txt")))


def sentence_piece(directory: Path, family: str) -> Path:
    """Models whose tokenizer cuts at white space alone and marks it: T5 and BART, with a tokenizer trained here."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=100, unk_token="<unk>", special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(["the small red bird, on the top left.", "a blue circle"] * 10, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )
    torch.manual_seed(0)
    network: Any
    if family == "t5":
        config = transformers.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        network = transformers.T5Model(config)
    else:
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        layers |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "pad_token_id": 0, "eos_token_id": 1}
        config = transformers.BartConfig(vocab_size=100, d_model=32, max_position_embeddings=64, **layers)
        network = transformers.BartModel(config)
    return save(directory, network, fast)


def byte_level(directory: Path, family: str) -> Path:
    """Models that cut text into byte-level pieces: GPT-2 and CLIP, with a tokenizer trained here."""
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
