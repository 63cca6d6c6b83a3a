"""Modules that hold parameters and call `fastt2i.ops`, and layers with forms of their own for some processors."""

from fastt2i.nn.conversion import convert
from fastt2i.nn.gated_conv import Gate, GatedConv2d, UpsampleGatedConv2d
from fastt2i.nn.region_keyword import RegionKeywordLoss

__all__ = ["Gate", "GatedConv2d", "RegionKeywordLoss", "UpsampleGatedConv2d", "convert"]
