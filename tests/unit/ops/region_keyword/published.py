"""The losses as AttnGAN and XMC-GAN publish them, loops and all."""

from __future__ import annotations

import math
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


def without_images_of_the_class(logits: Tensor, classes: list[int]) -> Tensor:
    """A caption's own image stays."""
    logits = logits.clone()
    for i, j in product(range(len(classes)), repeat=2):
        if i != j and classes[i] == classes[j]:
            logits[i, j] = -math.inf
    return logits


def attngan_words_loss(
    regions: Tensor, words: Tensor, lengths: list[int], classes: list[int], gammas: tuple[float, float, float]
) -> Tensor:
    """AttnGAN's word loss as its paper and code have it: one caption after the other, in their layouts.

    regions (B, D, H, W), words (B, D, T); images of the caption's class are no negatives.
    """
    gamma1, gamma2, gamma3 = gammas
    batch = len(regions)
    columns = []
    for j in range(batch):
        word = words[j, :, : lengths[j]]  # D x T
        column = []
        for i in range(batch):
            region = regions[i].flatten(1)  # D x R
            per_region = torch.softmax(region.T @ word, dim=1)  # R x T, over words
            attention = torch.softmax(gamma1 * per_region, dim=0)  # over regions
            context = region @ attention  # D x T
            cosine = (context * word).sum(0) / (context.norm(dim=0) * word.norm(dim=0)).clamp(min=1e-8)
            column.append(torch.exp(gamma2 * cosine).sum().log())
        columns.append(torch.stack(column))
    logits = without_images_of_the_class(gamma3 * torch.stack(columns, dim=1), classes)
    own = torch.arange(batch)
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def attngan_sent_loss(images: Tensor, sentences: Tensor, classes: list[int], gamma3: float) -> Tensor:
    """AttnGAN's sentence loss: gamma3 times the cosine, both ways; images of the sentence's class are no negatives."""
    norms = images.norm(dim=1)[:, None] * sentences.norm(dim=1)[None]
    logits = gamma3 * (images @ sentences.T) / norms.clamp(min=1e-8)
    own = torch.arange(len(images))
    logits = without_images_of_the_class(logits, classes)
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt(torch.clamp((x * x).sum(-1, keepdim=True), min=1e-12))


def xmcgan_word_loss(regions: Tensor, words: Tensor, lengths: list[int], gammas: tuple[float, float, float]) -> Tensor:
    """XMC-GAN's word loss: regions (B, R, D), words (B, T, D), hidden words pushed down by a large number."""
    gamma1, gamma2, gamma3 = gammas
    rows = []
    for j, length in enumerate(lengths):
        hidden = (torch.arange(words.shape[1]) >= length).to(regions.dtype) * -1e9
        region, word = unit(regions), unit(words[j])
        logits = gamma1 * region @ word.T + hidden  # B x R x T
        context = torch.softmax(logits, dim=1).transpose(1, 2) @ region  # B x T x D
        cosine = (words[j] * context).sum(-1) / (words[j].norm(dim=-1) * context.norm(dim=-1))
        rows.append(torch.logsumexp(gamma2 * cosine + hidden, dim=1) / gamma2)
    logits = gamma3 * torch.stack(rows)
    own = torch.arange(len(rows))
    return F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)


def xmcgan_contrastive_loss(images: Tensor, texts: Tensor, temperature: float) -> Tensor:
    """XMC-GAN's contrastive loss of L2-normalised features, both ways."""
    logits = unit(images) @ unit(texts).T / temperature
    log_rows, log_columns = logits.log_softmax(1).diagonal(), logits.log_softmax(0).diagonal()
    return -log_rows.mean() - log_columns.mean()


def attngan_attention(regions: Tensor, words: Tensor, gamma1: float) -> Tensor:
    """AttnGAN's `func_attention` of one image (D, R) and its words (D, L): (L, R)."""
    per_region = torch.softmax(regions.T @ words, dim=1)
    return torch.softmax(gamma1 * per_region.T, dim=1)


def xmcgan_attention(regions: Tensor, words: Tensor, gamma1: float) -> Tensor:
    """XMC-GAN's attention of one image (D, R) and its words (D, L): (L, R)."""
    return torch.softmax(gamma1 * unit(words.T) @ unit(regions.T).T, dim=1)
