"""Tiles that kernels can run with. Needs no Triton, so that the choices can be listed without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """Tile and launch of the kernel: positions, output channels (twice as many columns), input channels of a step."""

    positions: int
    channels: int
    depth: int
    num_warps: int
    num_stages: int
    any_layout: bool = False
    """Whether it has registers left for images that are not channels-last, or have gaps, and for channels that are no
    multiples of 8, all of which are read one by one."""

    @property
    def name(self) -> str:
        """As it stands in the table of times."""
        return f"{self.positions}x{self.channels}x{self.depth}w{self.num_warps}s{self.num_stages}"

    def shared_memory(self, element_size: int) -> int:
        """Bytes that the pipeline's stages take."""
        return self.num_stages * self.depth * (self.positions + 2 * self.channels) * element_size


#: The most keywords of a caption in `damsm`, whose softmax over keywords needs a caption in one tile.
MOST_KEYWORDS = 128

#: Of the one-kernel convolution.
CONFIGS = (
    Config(128, 64, 64, num_warps=8, num_stages=3),
    Config(128, 64, 32, num_warps=8, num_stages=4),
    Config(128, 32, 64, num_warps=4, num_stages=3),
    Config(128, 32, 32, num_warps=4, num_stages=3),
    Config(64, 64, 32, num_warps=4, num_stages=4),
    Config(256, 32, 32, num_warps=8, num_stages=4),
    Config(64, 32, 32, num_warps=4, num_stages=4, any_layout=True),
)
