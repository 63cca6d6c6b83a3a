"""What is compiled of the kernels that know their channels and strides: those behind convolutions, and sums."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
from triton.runtime.jit import JITFunction

from benchmarks.kernels.case import SHARED_MEMORY, Case
from fastt2i.kernels import leaky_shortcut, modulated_gate, partial_sums
from fastt2i.ops.gate.reference import ACTIVATIONS

#: Of kernels that know their channels: those of the presets' largest layers.
WIDTHS = (24, 32, 48, 64, 96)


def fused_cases() -> Iterator[Case]:
    """All of them."""
    yield from modulated_gate_cases()
    yield from leaky_shortcut_cases()
    yield from partial_sums_cases()


def modulated_gate_cases() -> Iterator[Case]:
    """Both kernels at every width in bfloat16; for other architectures, activations and dtypes with one."""
    for name in ("forward", "backward"):
        for width in WIDTHS:
            yield _modulated_gate_case(name, "leaky_relu", "bf16", width)
        for architecture in sorted({*SHARED_MEMORY} - {90}):
            yield _modulated_gate_case(name, "leaky_relu", "bf16", 64, architecture)
        for activation in sorted({*ACTIVATIONS} - {"leaky_relu"}):
            yield _modulated_gate_case(name, activation, "bf16", 64)
        for dtype in ("fp16", "fp32"):
            yield _modulated_gate_case(name, "silu", dtype, 24)
        yield _modulated_gate_case(name, "silu", "bf16", 6)


def _modulated_gate_case(name: str, activation: str, dtype: str, width: int, architecture: int = 90) -> Case:
    block = min(modulated_gate.MOST_CHANNELS, triton.next_power_of_2(width))
    strides = {}
    for tensor, channels in (("PRE", 2), ("DPRE", 2), ("DY", 1), ("Y", 1), ("R", 1)):
        row = channels * width
        strides |= {f"{tensor}_B": 4096 * row, f"{tensor}_C": 1, f"{tensor}_P": row}
    tiles = {"STEPS": 4, "BLOCK_P": modulated_gate.TILE // block, "BLOCK_C": block, "WIDE": False}
    modulation = {"SCALE_B": 4 * width, "SCALE_C": 1, "SHIFT_B": 4 * width, "SHIFT_C": 1}
    settings = {"BIASED": True, "RESIDUAL": True, "GAIN": 0.5, "ACTIVATION": activation, "NEGATIVE_SLOPE": 0.2}
    return _known_case(
        getattr(modulated_gate, f"{name}_kernel"), f"modulated_gate {name} {activation} C={width}", dtype, architecture,
        {"CHANNELS": width, **strides, **modulation, **settings, **tiles}, modulated_gate.OPTIONS,
    )  # fmt: skip


def leaky_shortcut_cases() -> Iterator[Case]:
    """Both kernels at every width in bfloat16; and with one, with less behind a convolution, as a derivative, and for
    other architectures and dtypes."""
    kinds = {
        "plain": {"SHORTCUT": False, "SHORTCUT_BIASED": False, "POOL": False},
        "pooled": {"SHORTCUT": False, "SHORTCUT_BIASED": False, "POOL": True},
        "shortcut": {"SHORTCUT": True, "SHORTCUT_BIASED": True, "POOL": False},
        "block": {"SHORTCUT": True, "SHORTCUT_BIASED": True, "POOL": True},
        "tangent": {"SHORTCUT": True, "SHORTCUT_BIASED": True, "POOL": True, "SIGNS": True},
    }
    for name in ("forward", "backward"):
        for width in WIDTHS:
            yield _leaky_shortcut_case(name, "block", kinds["block"], "bf16", width)
        for architecture in sorted({*SHARED_MEMORY} - {90}):
            yield _leaky_shortcut_case(name, "block", kinds["block"], "bf16", 64, architecture)
        for kind in ("plain", "pooled", "shortcut", *(["tangent"] if name == "forward" else [])):
            yield _leaky_shortcut_case(name, kind, kinds[kind], "bf16", 48)
        for dtype in ("fp16", "fp32"):
            yield _leaky_shortcut_case(name, "block", kinds["block"], dtype, 24)
        yield _leaky_shortcut_case(name, "block", kinds["block"], "bf16", 6)


def _leaky_shortcut_case(
    name: str, kind: str, changed: dict[str, bool], dtype: str, width: int, architecture: int = 90
) -> Case:
    block = max(8, min(leaky_shortcut.MOST_CHANNELS, triton.next_power_of_2(width)))
    strides, tensors = {}, {"PRE": 4096, "SHORT": 4096, "SIGNS": 4096, "Y": 4096, "POOLED": 1024}
    for tensor, positions in tensors.items():
        row = triton.cdiv(width, 8) if tensor == "SIGNS" else width
        strides |= {f"{tensor}_B": positions * row, f"{tensor}_C": 1, f"{tensor}_P": row}
    strides |= {f"D{tensor}_{axis}": strides[f"{tensor}_{axis}"] for tensor in ("Y", "PRE") for axis in "BCP"}
    flags = {"PRE": True, "BIASED": True, "SIGNS": False, "UPSTREAM": True, "SUMS": True}
    sizes = {"CHANNELS": width, "HEIGHT": 64, "WIDTH": 64, "GAIN": 0.5, "SLOPE": 0.2, "WIDE": False}
    tiles = {"BLOCK_P": leaky_shortcut.TILE // block, "BLOCK_C": block}
    return _known_case(
        getattr(leaky_shortcut, f"{name}_kernel"), f"leaky_shortcut {name} {kind} C={width}", dtype, architecture,
        {**strides, **flags, **sizes, **tiles, **changed}, leaky_shortcut.OPTIONS,
    )  # fmt: skip


def _known_case(
    kernel: JITFunction, label: str, dtype: str, architecture: int, given: dict[str, Any], options: dict[str, Any]
) -> Case:
    """A case of a kernel whose sizes and strides are constants."""
    constants = {name: value for name, value in given.items() if name in kernel.arg_names}
    return Case(
        kernel, label, dtype, architecture, constants, options,
        {"p_partial": "*fp32", "p_signs": "*u8"},
        odd=("positions", "tiles", "elements"),
    )  # fmt: skip


def partial_sums_cases() -> Iterator[Case]:
    """Into one tensor and into two."""
    for first in (24, 96):
        constants = {"COLUMNS": 96, "FIRST": first, "BLOCK_R": partial_sums.ROWS, "BLOCK_C": partial_sums.COLUMNS}
        yield Case(
            partial_sums.sum_kernel, f"partial_sums {first} of 96", "bf16", 90, constants, partial_sums.OPTIONS,
            {"p_partial": "*fp32", "p_second": "*fp32"}, odd=("group_rows", "all_rows"),
        )  # fmt: skip
