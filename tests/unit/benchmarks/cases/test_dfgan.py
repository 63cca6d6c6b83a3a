"""What the engine is compared with is what was published."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases.baselines.dfgan import NOISE, SENTENCE, Discriminator, Generator, Step


@pytest.mark.parametrize(("size", "generator", "trunk", "head"), [(64, 4.9, 3.2, 0.3), (256, 9.7, 6.6, 0.3)])
def test_parameters_are_those_of_the_published_networks(size: int, generator: float, trunk: float, head: float) -> None:
    with torch.device("meta"):
        drawing, judging = Generator(size), Discriminator(size)

    def numbers(module: torch.nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    def millions(numbers: int) -> float:
        return round(numbers / 1e6, 1)

    # Published blocks that change no width have a shortcut of 1x1 too, which is never used.
    unused = 256 * 257 * sum(isinstance(block.shortcut, torch.nn.Identity) for block in judging.blocks)
    assert millions(numbers(drawing)) == generator
    assert millions(numbers(judging) - numbers(judging.head) + unused) == trunk
    assert millions(numbers(judging.head)) == head


def test_a_step_changes_both_players() -> None:
    step = Step(16, torch.device("cpu"))
    before = [[p.detach().clone() for p in player.parameters()] for player in (step.generator, step.discriminator)]
    random = torch.Generator().manual_seed(0)
    real = torch.rand(4, 3, 16, 16, generator=random) * 2 - 1
    losses = step(real, torch.randn(4, SENTENCE, generator=random), torch.randn(4, NOISE, generator=random))
    assert all(torch.isfinite(loss) for loss in losses)
    for player, old in zip((step.generator, step.discriminator), before, strict=True):
        changed = [not torch.equal(p, was) for p, was in zip(player.parameters(), old, strict=True)]
        # Residual branches begin with weight 0, so only their weights learn at first.
        assert sum(changed) >= len(changed) // 3
