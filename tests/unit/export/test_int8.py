"""Rounded weights: within half a step of the model's own, and a quarter of their size."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastt2i.export.int8 import GROUP, quantize_weights
from fastt2i.nn import GatedConv2d


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Embedding(70, 96), nn.Linear(96, 65), GatedConv2d(33, 20, 3), nn.Linear(7, 5), nn.LayerNorm(5000)]
    return nn.ModuleList(layers).requires_grad_(False)


def test_weights_are_within_half_a_step() -> None:
    before = network()
    after = copy.deepcopy(before)
    quantize_weights(after)
    for old, new in zip(before, after, strict=True):
        rows = old.weight.flatten(1) if old.weight.dim() > 1 else old.weight[None]
        group = GROUP if rows.shape[1] % GROUP == 0 else rows.shape[1]
        step = rows.unflatten(1, (-1, group)).abs().amax(2, keepdim=True) / 127
        error = (new.weight - old.weight).reshape(len(rows), -1, group).abs()
        assert (error <= step / 2 * (1 + 1e-5)).all()
        assert new.weight.dtype == torch.float32
    assert torch.equal(after[3].weight, before[3].weight) and torch.equal(after[4].weight, before[4].weight)


def test_what_is_stored_is_small() -> None:
    model = network()
    large = model[:3]
    full = sum(p.numel() * 4 for p in large.parameters() if p.dim() > 1)
    quantize_weights(model)
    stored = [p for name, p in large.named_parameters() if "parametrizations" in name]
    assert sum(p.numel() * p.element_size() for p in stored) < 0.3 * full


def test_rows_of_zeros_stay_zero() -> None:
    layer = nn.Linear(64, 64).requires_grad_(False)
    layer.weight.zero_()
    quantize_weights(layer)
    assert torch.equal(layer.weight, torch.zeros(64, 64))
