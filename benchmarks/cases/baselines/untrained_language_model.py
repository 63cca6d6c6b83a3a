"""A language model of random weights: where no trained one is installed, and in tests, which need a small one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch


def write_untrained(directory: Path, words: Iterable[str], *, features: int, layers: int) -> Path:
    """Write a BERT with a vocabulary of whole words, and letters for all others; returns its folder.

    What it says of a caption follows from the caption alone and differs from one to the next, which is enough to learn
    by; nothing in it knows which words are alike.
    """
    from transformers import BertConfig, BertModel, BertTokenizerFast

    directory.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = list(dict.fromkeys([*special, *words, *letters, *(f"##{letter}" for letter in letters)]))
    (directory / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=features,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=features,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(directory)
    return directory
