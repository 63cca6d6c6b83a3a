"""How many floating-point operations the fused operators take, for `torch.utils.flop_counter`.

Counted as torch counts a convolution: two for every multiply-add of a product, nothing for the rest. Importing this
registers them; what an operator calls of torch's own inside is not seen by the counter otherwise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from fastt2i.kernels.launch import INSTALLED

#: Products over M keywords, R regions and D features: similarities and contexts; in the backward, both again, what
#: comes to the similarities from the contexts, and two to the regions and one to the keywords.
FORWARD, BACKWARD = 2, 7


def _scores(regions: Any, keywords: Any, *_: Any, **__: Any) -> int:
    images, count, features = regions
    captions, words, _ = keywords
    return 2 * FORWARD * images * captions * words * count * features


def _scores_backward(dscores: Any, regions: Any, keywords: Any, *_: Any, **__: Any) -> int:
    return _scores(regions, keywords) * BACKWARD // FORWARD


def _gated_conv2d(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    batch, _, height, width = out_shape[0]
    return 2 * batch * height * width * weight[0] * weight[1] * weight[2] * weight[3]


def _upsample_gated_conv2d(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    batch, channels, height, width = x
    return 2 * 16 * batch * height * width * channels * weight[0]  # four 2x2 kernels, at every pixel of x


def _gated_block(pre: Any, bias: Any, scale: Any, shift: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return _gated_conv2d(pre, weight, out_shape=out_shape)


def _register() -> None:
    ops = torch.ops.fastt2i
    register_flop_formula(ops.region_keyword_blocks)(_scores)
    register_flop_formula(ops.region_keyword_blocks_backward)(_scores_backward)
    if INSTALLED:
        import fastt2i.ops.gated_block.triton_ops
        import fastt2i.ops.gated_conv.triton_ops
        import fastt2i.ops.leaky_conv.triton_ops
        import fastt2i.ops.modulated_gated_conv.triton_ops
        import fastt2i.ops.region_keyword.triton_ops  # noqa: F401

        register_flop_formula(ops.region_keyword)(_scores)
        register_flop_formula(ops.region_keyword_backward)(_scores_backward)
        register_flop_formula(ops.gated_block)(_gated_block)
        register_flop_formula(ops.gated_conv2d)(_gated_conv2d)
        register_flop_formula(ops.upsample_gated_conv2d)(_upsample_gated_conv2d)


_register()
