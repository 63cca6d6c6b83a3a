"""What is exported: networks that end in the pixels of images, with everything between text and pixels inside."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastt2i.models.generator import Generator
from fastt2i.pictures.pixels import quantized
from fastt2i.text.sentence import SentenceNetwork

What = Literal["generator", "whole"]
#: Names of the open sizes: how many images, and how many tokens the longest caption has.
BATCH, LENGTH = "batch", "length"


class ImagesFromSentences(nn.Module):
    """sentence (B, d), of length sqrt(d), and noise (B, noise_dim) → images (B, S, S, 3) uint8."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, sentence: Tensor, noise: Tensor) -> Tensor:
        return quantized(self.generator(sentence, noise).images)


class ImagesFromTokens(nn.Module):
    """input_ids (B, L) and attention_mask (B, L), int64, and noise (B, noise_dim) → images (B, S, S, 3) uint8."""

    def __init__(self, language_model: SentenceNetwork, generator: Generator) -> None:
        super().__init__()
        self.language_model = language_model
        self.images = ImagesFromSentences(generator)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, noise: Tensor) -> Tensor:
        # A text that the tokenizer makes nothing of is one padding token, as in training.
        first = torch.arange(attention_mask.shape[1], device=attention_mask.device) == 0
        _, sentence = self.language_model(input_ids, attention_mask.maximum(first.long()))
        return self.images(sentence, noise)


def example_inputs(what: What, generator: Generator, sentence_dim: int) -> dict[str, Tensor]:
    """Inputs of a few images, by name, to trace with."""
    noise = torch.randn(2, generator.noise_dim, generator=torch.Generator().manual_seed(0))
    if what == "generator":
        return {"sentence": torch.ones(2, sentence_dim), "noise": noise}
    ids = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 4]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), "noise": noise}


def open_sizes(what: What, longest: int) -> dict[str, dict[int, Any]]:
    """Which sizes of the inputs are open, by name; longest: tokens of a caption."""
    batch = torch.export.Dim(BATCH, min=1)
    if what == "generator":
        return {"sentence": {0: batch}, "noise": {0: batch}}
    length = torch.export.Dim(LENGTH, min=1, max=longest)
    return {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}, "noise": {0: batch}}
