"""Modules that hold parameters and call `fastt2i.ops`."""

from fastt2i.nn.gated_conv import Gate, GatedConv2d, RegionKeywordLoss, UpsampleGatedConv2d

__all__ = ["Gate", "GatedConv2d", "RegionKeywordLoss", "UpsampleGatedConv2d"]
