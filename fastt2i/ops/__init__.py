"""Drop-in operators: gated convolutions and the matching of images with text."""

from fastt2i.ops.dispatch.tuning import tuning
from fastt2i.ops.gated_conv.functional import gate, gated_conv2d, upsample_gated_conv2d
from fastt2i.ops.gather import gather_batch
from fastt2i.ops.region_keyword.functional import (
    global_match_loss,
    region_keyword_attention,
    region_keyword_loss,
    region_keyword_scores,
)

__all__ = [
    "gate",
    "gated_conv2d",
    "gather_batch",
    "global_match_loss",
    "region_keyword_attention",
    "region_keyword_loss",
    "region_keyword_scores",
    "tuning",
    "upsample_gated_conv2d",
]
