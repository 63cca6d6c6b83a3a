"""An update of the generator: Adam and the moving average of its weights, as in the engine and as others write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.harness.peak_memory import peak
from benchmarks.harness.result import OURS
from benchmarks.harness.roofline import Work
from benchmarks.harness.suite import Suite, Timed
from fastt2i.config import OptimConfig
from fastt2i.engine.ema import Ema
from fastt2i.engine.optim import make_player
from fastt2i.engine.precision import Precision
from fastt2i.models.generator import Generator
from fastt2i.presets import preset

DECAY = 0.999
#: Adam reads the parameter, its gradient and two moments and writes all but the gradient; then the average is read and
#: written, and the parameter, which the same pass has at hand, is not read again.
PASSES = 4 + 3 + 2


def _network(device: torch.device) -> Generator:
    """The same network with the same gradients in every call."""
    torch.manual_seed(0)
    network = Generator(preset("64px").model, 384)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network.to(device)


def _peers(network: nn.Module, config: OptimConfig, **options: bool) -> Callable[[], None]:
    """torch's Adam, and an average that is updated one parameter after the other."""
    parameters = list(network.parameters())
    average = [p.detach().clone() for p in parameters]
    adam = torch.optim.Adam(parameters, config.generator_lr, (config.beta1, config.beta2), **options)

    def update() -> None:
        adam.step()
        with torch.no_grad():
            for mean, parameter in zip(average, parameters, strict=True):
                mean.mul_(DECAY).add_(parameter, alpha=1 - DECAY)

    return update


@pytest.mark.importance(5)
@pytest.mark.quick
def test_adam_and_average(benchmark: Suite) -> None:
    device, config = benchmark.device, replace(preset("64px").optim, name="adam")
    mine, loop, foreach, compiled = networks = [_network(device) for _ in range(4)]
    player = make_player("generator", mine, config, Precision("fp32", device))
    ema, weight = Ema(mine, DECAY), torch.tensor(1 - DECAY, device=device)

    def ours() -> None:
        player.optimizer.step()
        ema.update(weight)

    capturable = {"capturable": benchmark.on_cuda}
    updates: dict[str, Callable[[], None]] = {
        OURS: ours,
        "reference": _peers(loop, config, foreach=False, **capturable),
        "foreach": _peers(foreach, config, foreach=True, **capturable),
    }
    if not benchmark.quick:
        updates["torch.compile"] = torch.compile(_peers(compiled, config, foreach=True, **capturable))
    for update in updates.values():
        update()
    for other in networks[1 : len(updates)]:
        for found, expected in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(found, expected)
    numbers = sum(p.numel() for p in mine.parameters())
    benchmark.compare(
        {
            name: Timed(benchmark.watch.sampler(update), peak_bytes=peak(update, device))
            for name, update in updates.items()
        },
        "64px's generator",
        operator="optimizer and EMA",
        dtype="fp32",
        headline=True,
        roofline=Work(4 * PASSES * numbers, 0).roofline(benchmark.limits, torch.float32),
    )
