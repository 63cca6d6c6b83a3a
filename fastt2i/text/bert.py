"""BERT and its tokenizer, with the numbers that transformers gives and without importing it.

The default language model is a BERT. To import transformers' networks takes longer than all else that drawing a picture
needs together, so a folder of the usual form is read here; any other one `fastt2i.text.any_family` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from fastt2i.text.tokens import CaptionTokenizer

#: By what names the weights of a layer go in a folder.
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "attended_norm": "attention.output.LayerNorm",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}
#: The settings with which this is the network, and the file the tokenizer, that transformers makes of a folder.
_NETWORK = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "quantization_config": None,
}
_PIECES = {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
_TOKENIZER_CLASSES = ("BertTokenizer", "BertTokenizerFast")


class BertLayer(nn.Module):
    """Self-attention and two linear layers, each added to its input and normalised (Devlin et al. 2019).

    Args:
        dim: d, size of a token's feature.
        heads: of the attention.
        wide: size between the linear layers.
        eps: of the normalisation.
    """

    def __init__(self, dim: int, heads: int, wide: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.attended, self.attended_norm = nn.Linear(dim, dim), nn.LayerNorm(dim, eps=eps)
        self.wide, self.narrow, self.norm = nn.Linear(dim, wide), nn.Linear(wide, dim), nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features (B, L, d) of features (B, L, d); mask: (B, 1, 1, L), true where a token is."""
        parts = (self.query, self.key, self.value)
        query, key, value = (part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attended_norm(self.attended(attended.transpose(1, 2).flatten(2)) + x)
        return self.norm(self.narrow(F.gelu(self.wide(x))) + x)


class Bert(nn.Module):
    """The network, without the pooler, which nothing here reads.

    Args:
        config: as in a folder's `config.json`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        dim, eps = config["hidden_size"], config.get("layer_norm_eps", 1e-12)
        self.words = nn.Embedding(config["vocab_size"], dim)
        self.positions = nn.Embedding(config["max_position_embeddings"], dim)
        self.segments = nn.Embedding(config.get("type_vocab_size", 2), dim)
        self.norm = nn.LayerNorm(dim, eps=eps)
        sizes = dim, config["num_attention_heads"], config["intermediate_size"], eps
        self.layers = nn.ModuleList(BertLayer(*sizes) for _ in range(config["num_hidden_layers"]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Features (B, L, d) of tokens (B, L); attention_mask: 1 where a token is, 0 in the padding."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.segments.weight[0] + self.positions(places))
        for layer in self.layers:
            x = layer(x, attention_mask[:, None, None, :].bool())
        return x

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take a folder's weights, in float32; KeyError or RuntimeError where they do not fit."""
        embeddings = {
            "words": "word_embeddings",
            "positions": "position_embeddings",
            "segments": "token_type_embeddings",
        }
        names = {own: f"embeddings.{name}" for own, name in (embeddings | {"norm": "LayerNorm"}).items()}
        for number in range(len(self.layers)):
            names |= {f"layers.{number}.{own}": f"encoder.layer.{number}.{name}" for own, name in _LAYER.items()}
        parts = (key.rsplit(".", 1) for key in self.state_dict())
        own = {f"{where}.{what}": weights[f"{names[where]}.{what}"].float() for where, what in parts}
        self.load_state_dict(own, assign=True)


def read_bert(directory: Path) -> tuple[CaptionTokenizer, nn.Module, int] | None:
    """The tokenizer and the network of a folder, and d; None where it is not of the usual form, or damaged."""
    try:
        config = json.loads((directory / "config.json").read_bytes())
        if config["model_type"] != "bert" or any(config.get(name, value) != value for name, value in _NETWORK.items()):
            return None
        tokenizer = _read_tokenizer(directory, config["max_position_embeddings"])
        if tokenizer is None:
            return None
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            network = Bert(config)
        network.load(load_file(directory / "model.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
        return None  # transformers reads more forms, and says what is wrong with others
    return tokenizer, network, config["hidden_size"]


def _read_tokenizer(directory: Path, positions: int) -> CaptionTokenizer | None:
    """The tokenizer of `tokenizer.json`; None unless transformers would make the same one of the folder's settings."""
    settings = json.loads((directory / "tokenizer_config.json").read_bytes())
    content = (directory / "tokenizer.json").read_text("utf-8")
    file = json.loads(content)
    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": settings.get("tokenize_chinese_chars", True),
        "strip_accents": settings.get("strip_accents"),
        "lowercase": settings.get("do_lower_case", True),
    }
    unknown, padding = settings.get("unk_token", "[UNK]"), settings.get("pad_token", "[PAD]")
    usual = (
        settings.get("tokenizer_class") in _TOKENIZER_CLASSES
        and file["normalizer"] == normalizer
        and file["pre_tokenizer"] == {"type": "BertPreTokenizer"}
        and _PIECES | {"unk_token": unknown}
        == {name: value for name, value in file["model"].items() if name != "vocab"}
    )
    if not usual or padding not in file["model"]["vocab"]:
        return None
    backend = Tokenizer.from_str(content)
    return CaptionTokenizer(
        backend,
        unknown=unknown,
        padding=file["model"]["vocab"][padding],
        longest=min(settings.get("model_max_length", positions), positions),
        cut_at=settings.get("truncation_side", "right"),
    )
