"""The implementations of region-keyword scores, what each can run, and which is chosen where nothing was timed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastt2i.kernels.tiles import MOST_KEYWORDS
from fastt2i.ops.dispatch.registry import Call, Implementation, register
from fastt2i.ops.dispatch.triton_support import triton_unavailable
from fastt2i.ops.region_keyword import reference, torch_impl
from fastt2i.ops.transforms import NOT_TRANSFORMABLE, under_transform

#: Multiply-adds of the similarities, masked ones included, from which the blocked implementation won on 2 CPU cores.
BLOCKED_FROM = 2**24


def _triton(
    regions: Tensor, keywords: Tensor, mask: Tensor, variant: str, gamma_attention: float, gamma_pooling: float
) -> Tensor:
    # Imported when first used: Triton takes a while to load, and may not be installed.
    from fastt2i.ops.region_keyword.triton_ops import region_keyword_scores

    return region_keyword_scores(regions, keywords, mask, variant, gamma_attention, gamma_pooling)


def _torch_unavailable(call: Call) -> str | None:
    if under_transform():
        return NOT_TRANSFORMABLE
    if call.device.type != "cuda" or torch.compiler.is_compiling() or not torch.cuda.is_initialized():
        return None
    if torch.cuda.is_current_stream_capturing():
        return "the host reads the captions' lengths, which cannot be captured in a CUDA graph"
    return None


def _triton_unavailable(call: Call) -> str | None:
    variant, keywords = call.settings[0], call.shapes[-1][1]
    if call.dtype != torch.float64 and variant == "damsm" and keywords > MOST_KEYWORDS:
        return f"keywords has {keywords} for every caption; with variant='damsm' it takes at most {MOST_KEYWORDS}"
    return triton_unavailable(call)


def _prefer(call: Call) -> tuple[str, ...]:
    if call.device.type == "cuda":
        return ("triton", "torch")
    if torch.compiler.is_exporting():  # a comparison would bound an open size, and who loads it has torch's operators
        return ("reference",)
    (images, regions, features), (captions, keywords, _) = call.shapes
    return ("torch",) if images * captions * keywords * regions * features >= BLOCKED_FROM else ("reference",)


register(
    "region_keyword_scores",
    {
        "reference": Implementation(reference.region_keyword_scores),
        "torch": Implementation(torch_impl.region_keyword_scores, _torch_unavailable),
        "triton": Implementation(_triton, _triton_unavailable),
    },
    _prefer,
    f"triton, then torch on CUDA; on a CPU torch from {BLOCKED_FROM / 1e6:.0f} million multiply-adds of a similarity "
    "(B_img x B_cap x T x R x D), reference below",
)
