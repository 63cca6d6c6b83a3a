"""The parts of a training step through torch.compile: no graph break, the same results, a cache on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from fastt2i.config import LossConfig
from fastt2i.engine.execution.compile_trial import compile_step
from fastt2i.engine.execution.gradient_cache import AccumulatedStep
from fastt2i.engine.step import TrainStep
from tests.unit.engine.test_step import make, make_inputs, take


def traced(step: TrainStep) -> TrainStep:
    """Traced as for compilation, derivatives too, but run as it is."""
    return step.with_parts(lambda part: torch.compile(part, fullgraph=True, dynamic=False, backend="aot_eager"))


@pytest.mark.parametrize("penalty", ["r1", "ma_gp"])
@torch._dynamo.config.patch(trace_autograd_ops=True)
def test_a_step_has_no_graph_break_and_does_the_same(penalty: str) -> None:
    config = LossConfig(penalty=penalty, penalty_every=2, augment=("translation", "cutout"))
    plain, compiled = (make(config, noise="conditioning_augmentation") for _ in range(2))
    compiled = traced(compiled)
    for number in range(3):
        inputs = make_inputs(plain, number)
        torch.testing.assert_close(take(compiled, inputs, number), take(plain, inputs, number), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_compiler_itself(precision: str) -> None:
    # With hinge, the gradients of the last bias cancel at first: of what rounding leaves, Adam would make a whole step.
    plain, compiled = (make(LossConfig(adversarial="nonsaturating"), precision) for _ in range(2))
    compiled = compile_step(compiled)
    bound = 1e-4 if precision == "fp32" else 5e-2
    for number in range(2):
        inputs = make_inputs(plain, number)
        torch.testing.assert_close(take(compiled, inputs, number), take(plain, inputs, number), rtol=bound, atol=bound)


@pytest.mark.parametrize("own", [True, False])
def test_compiled_code_is_kept_in_the_users_cache_or_where_the_user_says(
    own: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own default, a temporary folder, is in the environment from the first optimizer on."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere" if own else default_cache_dir())
    compile_step(make(LossConfig()))
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == ("/somewhere" if own else str(cache / "compile"))


DRAW_COMPILED = """
import torch
from torch._dynamo.utils import counters
from fastt2i.config import LossConfig
from fastt2i.engine.execution.compile_trial import compile_step
from tests.unit.engine.test_step import make, make_inputs

step = make(LossConfig())
with torch.no_grad():
    compile_step(step)._generate(make_inputs(step))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.slow
def test_another_process_finds_what_was_compiled(cache: Path) -> None:
    def compiled() -> list[int]:
        root = Path(__file__).parents[2]
        environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
        run = subprocess.run(
            [sys.executable, "-c", DRAW_COMPILED],
            cwd=root,
            env=environment | {"PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(word) for word in run.stdout.split()]

    hits, misses = compiled()
    assert hits == 0 and misses > 0 and any((cache / "compile").iterdir())
    assert compiled() == [misses, 0]


def test_an_accumulated_step_has_no_graph_break_and_does_the_same() -> None:
    plain, accumulated = (AccumulatedStep(make(LossConfig(penalty="none")), 2) for _ in range(2))
    compiled = traced(accumulated)
    for number in range(2):
        inputs = make_inputs(plain, number)
        torch.testing.assert_close(take(compiled, inputs, number), take(plain, inputs, number), rtol=1e-4, atol=1e-5)
