"""Drop-in operators: gated convolutions and the matching of images with text.

The function `gate` shares its name with the package of its implementations: `fastt2i.ops.gate` is the function, and
modules of the package are imported by `from fastt2i.ops.gate.triton_ops import ...`.
"""

from fastt2i.ops.contrastive import global_match_loss
from fastt2i.ops.dispatch.tuning import tuning
from fastt2i.ops.gate.functional import gate
from fastt2i.ops.gated_block.functional import modulated_gated_block
from fastt2i.ops.gated_conv.functional import gated_conv2d, upsample_gated_conv2d
from fastt2i.ops.gather import gather_batch
from fastt2i.ops.leaky_conv.functional import leaky_conv2d
from fastt2i.ops.modulated_gated_conv.functional import modulated_gated_conv2d, modulated_upsample_gated_conv2d
from fastt2i.ops.region_keyword.functional import (
    region_keyword_attention,
    region_keyword_loss,
    region_keyword_scores,
)

__all__ = [
    "gate",
    "gated_conv2d",
    "gather_batch",
    "global_match_loss",
    "leaky_conv2d",
    "modulated_gated_block",
    "modulated_gated_conv2d",
    "modulated_upsample_gated_conv2d",
    "region_keyword_attention",
    "region_keyword_loss",
    "region_keyword_scores",
    "tuning",
    "upsample_gated_conv2d",
]
