"""Every Triton launch of every preset's step, compiled for an H100 from its real call site."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.cases.training_step import configured
from benchmarks.gpu import compile_ahead
from benchmarks.gpu.compile_ahead import Job
from benchmarks.kernels.calls import SHARED_MEMORY
from benchmarks.kernels.compile_all import compiled_kernel
from benchmarks.stand_in.fake_step import CUDA
from benchmarks.stand_in.launches import Launch, watched
from benchmarks.stand_in.step_cost import cost_of_step
from fastt2i.kernels.tiles import CONFIGS
from fastt2i.ops.dispatch.registry import Call, forms
from fastt2i.presets import PRESETS

QUICK = {("demo", "bf16")}
#: Whose programs differ from those of other precisions and presets by a dtype or a width.
SLOW = {(preset, precision) for preset in ("64px", "128px") for precision in ("fp16", "tf32")}
STEPS = [
    pytest.param(
        preset,
        precision,
        marks=[pytest.mark.quick] * ((preset, precision) in QUICK) + [pytest.mark.slow] * ((preset, precision) in SLOW),
    )
    for preset in PRESETS
    for precision in ("bf16", "fp16", "tf32", "fp32")
]
#: Kernels that multiply matrices.
PRODUCTS = {"gated_conv.forward_kernel"} | {
    f"region_keyword.{name}_kernel" for name in ("forward", "weights", "regions", "keywords")
}


@cache
def compiled(launch_key: Any) -> Any:
    return LAUNCHES[launch_key].compiled()


LAUNCHES: dict[Any, Launch] = {}


def launches_of(preset: str, precision: str) -> list[Any]:
    """Keys of what a step without penalty and one with it launch."""
    found: dict[Any, Launch] = {}
    for penalty in (False, True):
        cost_of_step(configured(preset, precision=precision), penalty, lambda one: found.setdefault(one.key, one))
    LAUNCHES.update(found)
    return list(found)


def check(key: Any) -> None:
    """A program that spills nothing, fits, and reads and writes as widely as its channels allow."""
    launch, program = LAUNCHES[key], compiled(key)
    found, ptx = compiled_kernel(launch.name, program), program.asm["ptx"]
    assert found.stack == 0, f"{launch.name} spills: {found}"
    assert found.shared <= SHARED_MEMORY[90]
    assert not re.search(r"\b(?:ld|st)\.local\b", ptx), launch.name
    accesses = Counter(re.findall(r"\b(?:ld|st)\.global[\w.:]*", ptx))
    narrow = {way: sum(n for a, n in accesses.items() if a.startswith(way) and re.search(r"global\.[bu]16$", a))
              for way in ("ld", "st")}  # fmt: skip
    dtypes = {a.dtype for a in launch.arguments.values() if isinstance(a, torch.Tensor)}
    module = launch.name.partition(".")[0]
    if module == "partial_sums":  # a bias's gradient, of which each thread has one number
        assert narrow["ld"] == 0 and narrow["st"] <= 2, f"{launch.name}: {accesses}"
    else:
        assert sum(narrow.values()) == 0, f"{launch.name}: {accesses}"
    if module in ("gate", "transposed_weight"):
        wide = {a for a in accesses if a.endswith(".v4.b32")}
        assert {a[:2] for a in wide} == {"ld", "st"}, accesses
    if launch.name in PRODUCTS and dtypes & {torch.bfloat16, torch.float16}:
        assert "wgmma.mma_async" in ptx, launch.name


@pytest.mark.parametrize(("preset", "precision"), STEPS)
def test_every_launch_compiles(preset: str, precision: str) -> None:
    keys = launches_of(preset, precision)
    names = {LAUNCHES[key].name for key in keys}
    fused = {f"{name}.{way}_kernel" for name in ("modulated_gate", "leaky_shortcut") for way in ("forward", "backward")}
    assert fused | {"region_keyword.forward_kernel"} <= names
    for key in keys:
        check(key)


@pytest.mark.parametrize(("name", "job"), compile_ahead.operators().items())
def test_every_form_of_an_operator_compiles(name: str, job: Job) -> None:
    found = compile_ahead.launches(job)
    LAUNCHES.update(found)
    for key in found:
        check(key)
    tiles = {
        (launch.arguments["BLOCK_P"], launch.arguments["BLOCK_C"], launch.arguments["BLOCK_K"])
        for launch in found.values()
        if launch.name == "gated_conv.forward_kernel"
    }
    assert len(tiles) == (len(CONFIGS) if "gated_conv2d" in name else 0)


@pytest.mark.quick
def test_larger_tiles_are_for_what_they_have_registers_for() -> None:
    def tiles(channels: int, layout: str) -> set[str]:
        shapes = torch.Size((32, channels, 64, 64)), torch.Size((2 * channels, channels, 3, 3))
        with watched(lambda launch: None):
            found = forms(Call("gated_conv2d", CUDA, torch.bfloat16, shapes, (1,), layout, True))
        return {config.name for config in CONFIGS if found[f"triton/{config.name}"] is None}

    assert tiles(24, "channels_last") == {config.name for config in CONFIGS}
    for channels, layout in ((20, "channels_last"), (24, "contiguous"), (64, "strided")):
        assert tiles(channels, layout) == {config.name for config in CONFIGS if config.any_layout}


@pytest.mark.quick
def test_what_is_compiled_ahead_is_what_steps_launch() -> None:
    jobs = compile_ahead.jobs(["demo"])
    assert len(jobs) == 2 + len(compile_ahead.operators())
    ahead = {key for job in compile_ahead.steps(["demo"]).values() for key in compile_ahead.launches(job)}
    assert set(launches_of("demo", "bf16")) <= ahead
    [first, *_] = compile_ahead.compile_share([*jobs.items()][:1])
    assert re.fullmatch(r"demo: \d+ programs, 0 failed, [\d.]+ s", first), first
