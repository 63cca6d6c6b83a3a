"""What a step asks of a GPU, counted on fake tensors: first the counting itself, then every preset's step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from triton.runtime.jit import JITFunction

from benchmarks.cases.training_step import configured
from benchmarks.gpu.dry_step import main, predicted_seconds
from benchmarks.stand_in.launches import Launch, through_bodies, watched
from benchmarks.stand_in.step_cost import Cost, StepCost, _Counter, cost_of_step
from fastt2i.kernels import gate, region_keyword, region_keyword_operands
from fastt2i.ops import gated_conv2d
from fastt2i.presets import PRESETS

CASES = [
    (p, precision, penalty) for p in PRESETS for precision in ("bf16", "fp16", "tf32", "fp32") for penalty in (0, 1)
]
QUICK = {("demo", "bf16", 1), ("256px", "bf16", 1)}

MODE = FakeTensorMode()


def counted(run: Callable[[], object]) -> StepCost:
    counter = _Counter(lambda launch: None)
    with MODE, through_bodies(lambda: counter), watched(counter.see_kernel), counter:
        run()
    return counter.cost


def on_gpu(*shape: int, **options: object) -> Tensor:
    with MODE:
        return torch.empty(*shape, device="cuda", **options)  # type: ignore[arg-type]


@pytest.mark.quick
def test_each_tensor_is_read_and_written_once() -> None:
    x, y = on_gpu(64, 32), on_gpu(1, 32)
    cost = counted(lambda: torch.add(x, y.expand(64, 32)).view(-1)).total
    assert cost == Cost(launches=1, bytes_read=4 * (64 * 32 + 32), bytes_written=4 * 64 * 32, flops=0)


@pytest.mark.quick
def test_what_is_copied_to_is_not_read() -> None:
    x, y = on_gpu(64, dtype=torch.bfloat16), on_gpu(64)
    assert counted(lambda: y.copy_(x)).total == Cost(1, 2 * 64, 4 * 64, 0)
    assert counted(lambda: torch._foreach_copy_([y], [x])).total == Cost(1, 2 * 64, 4 * 64, 0)


@pytest.mark.quick
def test_a_gradient_of_the_input_reads_no_input() -> None:
    x, weight, dy = on_gpu(2, 3, 8, 8), on_gpu(5, 3, 3, 3), on_gpu(2, 5, 6, 6)

    def read(of_input: bool, of_weight: bool) -> int:
        options = (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (of_input, of_weight, False)
        return counted(lambda: torch.ops.aten.convolution_backward(dy, x, weight, None, *options)).total.bytes_read

    assert read(True, True) == 4 * (x.numel() + weight.numel() + dy.numel())
    assert read(True, False) == 4 * (weight.numel() + dy.numel())
    assert read(False, True) == 4 * (x.numel() + dy.numel())


@pytest.mark.quick
def test_what_only_a_shape_is_taken_of_is_not_read() -> None:
    x = on_gpu(64)
    assert counted(lambda: torch.zeros_like(x)).total == counted(lambda: x.new_zeros(64)).total == Cost(1, 0, 4 * 64, 0)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("run", "forbidden"),
    [
        (lambda x: x.sum().item(), {"_local_scalar_dense": 1}),
        (lambda x: 1 if x.sum() > 0 else 2, {"_local_scalar_dense": 1}),
        (lambda x: x.cpu(), {"_to_copy between host and device": 1}),
        (lambda x: x.copy_(torch.empty(8, 8)), {"copy_ between host and device": 1}),
        (lambda x: torch.tensor([1.0, 2.0], device="cuda"), {"_to_copy between host and device": 1}),
        (lambda x: x + 1.5, {}),
    ],
)
def test_what_no_graph_can_hold_is_found(run: Callable[[Tensor], object], forbidden: dict[str, int]) -> None:
    x = on_gpu(8, 8)
    assert dict(counted(lambda: run(x)).forbidden) == forbidden


@pytest.mark.quick
def test_shapes_that_depend_on_values_are_found() -> None:
    counter, x = _Counter(lambda launch: None), on_gpu(8)
    with MODE, counter, pytest.raises(DynamicOutputShapeException):
        x.nonzero()
    assert dict(counter.cost.forbidden) == {"nonzero": 1}


@pytest.mark.quick
def test_an_operator_counts_by_what_it_launches() -> None:
    x, weight = on_gpu(2, 16, 8, 8), on_gpu(64, 16, 3, 3)
    cost = counted(lambda: gated_conv2d(x, weight, padding=1))
    launched = {name: found.launches for name, found in cost.parts["rest"].operators.items() if found.launches}
    assert launched == {"convolution": 1, "gate.forward_kernel": 1}
    assert cost.total.flops == 2 * 2 * 64 * 16 * 9 * 8 * 8  # once, though the operator has a formula too
    kernel = cost.parts["rest"].operators["gate.forward_kernel"]
    assert (kernel.bytes_read, kernel.bytes_written) == (4 * 2 * 64 * 64, 4 * 2 * 32 * 64)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("kernel", "written"),
    [
        (gate.backward_kernel, {"p_dpre", "p_partial"}),
        (region_keyword.forward_kernel, {"p_cosine", "p_lse", "p_square", "p_context"}),
        (region_keyword_operands.unpack_keywords_kernel, {"p_dkeywords"}),
    ],
)
def test_what_a_kernel_writes_is_found_through_names_and_functions(kernel: JITFunction, written: set[str]) -> None:
    launch = Launch(kernel, {}, {})
    assert {name for name in launch.stored if name.startswith("p_")} == written


@pytest.mark.quick
def test_the_program_writes_what_it_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "step.json"
    assert main(["--preset", "demo", "--batch", "8", "--json", str(file)]) == 0
    told, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert set(told) == {"launches", "bytes", "flops", "forbidden", "parts", "region_loss_dtype"}
    for name in ("launches", "bytes", "flops"):
        assert told[name] == sum(part[name] for part in told["parts"].values()) > 0
    assert told["forbidden"] == {} and "forbidden in a captured step: nothing" in printed
    assert {"generate", "discriminator", "generator backward"} <= set(told["parts"])
    assert printed.count("prediction, not a measurement") == 2


@pytest.mark.quick
def test_a_prediction_takes_the_longer_time_of_each_launch() -> None:
    memory, product = Cost(1, 3_000_000_000, 0, 0), Cost(1, 0, 0, 798_000_000_000)
    cost = StepCost(launches=[(memory, torch.float32), (product, torch.bfloat16), (Cost(5), torch.float32)])
    assert predicted_seconds(cost, "H100", "bf16") == pytest.approx(1e-3 + 1e-3 + 5 * 2e-6)


@pytest.mark.quick
def test_what_the_largest_step_moves_stays_below_its_bound() -> None:
    """17 GB and 600 launches; with the penalty, which few steps have, 1.6 times as much as without."""
    plain, penalised = (cost_of_step(configured("256px", 32, precision="bf16"), with_penalty).total
                        for with_penalty in (False, True))  # fmt: skip
    assert plain.bytes <= 17e9 and plain.launches <= 600
    assert penalised.bytes <= 1.6 * plain.bytes and penalised.launches <= 1.6 * plain.launches


@pytest.mark.quick
def test_launches_of_a_small_step_stay_below_their_bound() -> None:
    assert cost_of_step(configured("64px", 64, precision="bf16"), False).total.launches <= 500


@pytest.mark.parametrize(
    ("preset", "precision", "penalty"),
    [pytest.param(*case, marks=[pytest.mark.quick] * (case in QUICK)) for case in CASES],
)
def test_a_step_can_be_captured(preset: str, precision: str, penalty: int) -> None:
    """No value comes back to the host, no tensor goes between host and device, no shape depends on values."""
    differences: list[str] = []
    cost = cost_of_step(configured(preset, precision=precision), bool(penalty), differences=differences)
    assert dict(cost.forbidden) == {}
    assert differences == []  # operators tell torch what their bodies make
    assert {"generate", "discriminator", "discriminator update", "generator", "generator update"} <= set(cost.parts)
    assert ("penalty" in cost.parts) == bool(penalty)
    assert cost.region_dtypes == {{"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")}
