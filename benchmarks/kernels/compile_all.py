"""Compile every kernel for the GPUs that people have, without one: registers, stack, shared memory, instructions.

    python -m benchmarks.kernels.compile_all [--json FILE]

Triton compiles for a target that is not there; `cuobjdump`, which comes with it, tells what the program takes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.kernels.case import SHARED_MEMORY, Case
from benchmarks.kernels.fused_cases import fused_cases
from benchmarks.kernels.table import CompiledKernel, KernelTable, source_digest
from fastt2i.kernels import (
    contrastive_loss,
    gate,
    gated_conv,
    region_keyword,
    region_keyword_operands,
    transposed_weight,
)
from fastt2i.kernels.tiles import CONFIGS, Config
from fastt2i.ops.gate.reference import ACTIVATIONS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Compiled:
    """What a case takes, and its PTX.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread in local memory; more than 0 is a spill.
        shared: bytes of a program.
        ptx: the text.
    """

    registers: int
    stack: int
    shared: int
    ptx: str

    @property
    def tensor_cores(self) -> str:
        """The instructions that multiply matrices; empty where there are none."""
        found = set(re.findall(r"\b(wgmma|tcgen05|mma)\.(?:mma_async|mma|sync)", self.ptx))
        return " ".join(sorted(found))


def cases() -> Iterator[Case]:
    """Every kernel and every configuration of it."""
    yield from gate_cases()
    yield from gated_conv_cases()
    yield from transposed_weight_cases()
    yield from region_keyword_cases()
    yield from contrastive_loss_cases()
    yield from fused_cases()


def gate_cases() -> Iterator[Case]:
    """All kernels and activations for sm_90; each other dtype, architecture, width, layout and alignment with one."""
    kernels = (gate.forward_kernel, gate.backward_kernel, gate.backward_backward_kernel)
    for kernel in kernels:
        for activation in ACTIVATIONS:
            yield _gate_case(kernel, activation, "bf16")
        for dtype in ("fp16", "fp32"):
            yield _gate_case(kernel, "leaky_relu", dtype)
            yield _gate_case(kernel, "leaky_relu", dtype, channels=24)
        for architecture in (80, 100):
            yield _gate_case(kernel, "silu", "bf16", architecture)
            yield _gate_case(kernel, "silu", "bf16", architecture, channels=24)
        for channels in (1, 9, 24, 96):
            yield _gate_case(kernel, "silu", "bf16", channels=channels)
        for aligned in (True, False):
            yield _gate_case(kernel, "silu", "bf16", aligned=aligned, channels_last=False)
        yield _gate_case(kernel, "silu", "bf16", aligned=False, channels_last=False, wide=True)


def _gate_case(
    kernel: JITFunction,
    activation: str,
    dtype: str,
    architecture: int = 90,
    channels: int = gate.MOST_CHANNELS,
    aligned: bool = True,
    channels_last: bool = True,
    wide: bool = False,
) -> Case:
    block_c = min(gate.MOST_CHANNELS, triton.next_power_of_2(channels))
    given = {
        "CHANNELS": channels,
        "ROW": channels if channels_last else 0,
        "WIDE": wide,
        "STEPS": gate.STEPS,
        "ACTIVATION": activation,
        "NEGATIVE_SLOPE": 0.2,
        "BLOCK_P": gate.TILE // block_c,
        "BLOCK_C": block_c,
    }
    constants = {name: given[name] for name in kernel.arg_names if name in given}
    tile = f" of {channels} channels" + (" far apart" if wide else "")
    return Case(
        kernel, f"gate {kernel.fn.__name__} {activation}{tile}", dtype, architecture, constants, gate.OPTIONS,
        {"p_partial": "*fp32"}, aligned and channels % 8 == 0, channels_last=channels_last,
    )  # fmt: skip


def gated_conv_cases() -> Iterator[Case]:
    """Every tile that fits, for every architecture; 3x3 with pre kept, upsampling, and 1x1 for inference.

    And every tile for sm_90 with all else that a call may ask for.
    """
    for config in CONFIGS:
        for architecture, limit in SHARED_MEMORY.items():
            for dtype in ("bf16", "fp32"):
                if config.shared_memory(DTYPES[dtype].itemsize) <= limit:
                    yield _gated_conv_case(config, "3x3", dtype, architecture)
            yield _gated_conv_case(config, "upsampling", "bf16", architecture)
        yield _gated_conv_case(config, "1x1 inference", "fp16")
        if config.any_channels:
            yield _gated_conv_case(config, "3x3", "bf16", aligned=False)
            for activation in sorted({*ACTIVATIONS} - {"leaky_relu"}):
                yield _gated_conv_case(config, "3x3", "bf16", changes=f" {activation}", ACTIVATION=activation)
        yield _gated_conv_case(config, "3x3", "bf16", changes=" stride 2", STRIDE_H=2, STRIDE_W=2)
        dilated = {"DILATION_H": 2, "DILATION_W": 2, "PAD_H": 2, "PAD_W": 2}
        yield _gated_conv_case(config, "3x3", "bf16", changes=" dilation 2", **dilated)
        yield _gated_conv_case(config, "3x3", "bf16", changes=" in 64 bits", WIDE=True)
        yield _gated_conv_case(config, "3x3", "bf16", changes=" odd sizes", odd=("height", "width", "rows", "columns"))
        yield _gated_conv_case(config, "3x3", "bf16", channels_last=False)
        if config.shared_memory(DTYPES["fp32"].itemsize) <= SHARED_MEMORY[90]:
            yield _gated_conv_case(config, "3x3", "fp32", changes=" ieee", PRECISION="ieee")


def _gated_conv_case(
    config: Config,
    kind: str,
    dtype: str,
    architecture: int = 90,
    aligned: bool = True,
    channels_last: bool = True,
    odd: tuple[str, ...] = (),
    changes: str = "",
    **changed: Any,
) -> Case:
    """A tile; `changes` says what else is `changed`."""
    taps, pad, phases = {"3x3": (3, 1, 1), "upsampling": (2, 1, 2), "1x1 inference": (1, 0, 1)}[kind]
    constants = {
        **dict.fromkeys(("STRIDE_H", "STRIDE_W", "DILATION_H", "DILATION_W"), 1),
        **dict.fromkeys(("PAD_H", "PAD_W"), pad),
        **dict.fromkeys(("KERNEL_H", "KERNEL_W"), taps),
        "PHASES": phases,
        "BIASED": True,
        "KEEP_PRE": kind != "1x1 inference",
        "WIDE": False,
        "ACTIVATION": "leaky_relu",
        "NEGATIVE_SLOPE": 0.2,
        "PRECISION": "tf32",
        "WIDEN": False,
        "BLOCK_P": config.positions,
        "BLOCK_C": config.channels,
        "BLOCK_K": config.depth,
    }
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages, "enable_fp_fusion": True}
    return Case(
        gated_conv.forward_kernel, f"gated_conv {kind}{changes} {config.name}", dtype, architecture,
        constants | changed, options, aligned=aligned, odd=odd, channels_last=channels_last,
    )  # fmt: skip


def transposed_weight_cases() -> Iterator[Case]:
    """All kernels with every dtype and architecture, at channels of which a tile is not full."""
    rows, columns = 48, 96
    weight = dict(zip(("W_O", "W_I", "W_H", "W_W"), (9 * columns, 1, 3 * columns, columns), strict=True))
    dout = dict(zip(("D_I", "D_O", "D_H", "D_W"), (16 * rows, 1, 4 * rows, rows), strict=True))
    common = {"ROWS": rows, "COLUMNS": columns, "BLOCK": transposed_weight.BLOCK, **weight}
    kinds = {
        "forward": (transposed_weight.forward_kernel, {"PACKED": False}),
        "packed": (transposed_weight.forward_kernel, {"PACKED": True}),
        "backward": (transposed_weight.backward_kernel, dout),
    }
    for name, (kernel, own) in kinds.items():
        for dtype, architecture in (("bf16", 80), ("bf16", 90), ("bf16", 100), ("fp16", 90), ("fp32", 90)):
            label = f"transposed_weight {name}"
            yield Case(kernel, label, dtype, architecture, common | own, transposed_weight.OPTIONS)


def region_keyword_cases() -> Iterator[Case]:
    """All kernels as their launchers choose tiles, for feature sizes, captions, dtypes and architectures."""
    tiled = [(name, caption) for name in ("forward", "contexts", "weights") for caption in (0, 32)]
    plain = [("regions", 0), ("keywords", 0)]
    for name, caption in tiled + plain:
        for architecture in SHARED_MEMORY:
            for width in (32, 256, 768):
                yield _region_keyword_case(name, caption, "bf16", width, architecture)
            yield _region_keyword_case(name, caption, "fp32", 256, architecture)
        yield _region_keyword_case(name, caption, "fp16", 256, 90)
        yield _region_keyword_case(name, caption, "fp32", 32, 90)
    for name in ("forward", "contexts", "weights"):  # a tile of a long caption's own size
        for dtype in ("bf16", "fp32"):
            yield _region_keyword_case(name, 128, dtype, 256, 90)
    for width in (16, 128, 384):
        yield _region_keyword_case("contexts", 0, "bf16", width, 90)
    for architecture in SHARED_MEMORY:
        yield _region_keyword_case("pool", 16, "fp32", 256, architecture)
    for name in ("pack_regions", "pack_keywords", "unpack_regions", "unpack_keywords"):
        for dtype, architecture, variant in (
            *(("bf16", architecture, "xmc") for architecture in SHARED_MEMORY),
            *(("bf16", 90, "damsm"), ("fp16", 90, "xmc"), ("fp32", 90, "xmc")),
        ):
            for width in (256, 768):
                yield _region_keyword_operands_case(name, dtype, width, architecture, variant)


def _region_keyword_case(name: str, caption: int, dtype: str, width: int, architecture: int) -> Case:
    """A kernel; `contexts` is the forward one as the backward pass runs it. caption: rows of a tile for each, or 0."""
    attends = name in ("forward", "contexts")
    if name == "pool":
        tiles = {"BLOCK_J": 64, "num_warps": 4}
    else:
        blocks = region_keyword.blocks(width, DTYPES[dtype], caption, architecture // 10)
        tiles = dict(getattr(blocks, "forward" if attends else name))
    options = {option: tiles.pop(option) for option in ("num_warps", "num_stages", "maxnreg") if option in tiles}
    kernel = region_keyword.forward_kernel if attends else getattr(region_keyword, f"{name}_kernel")
    absent = {"forward": ("p_context",), "contexts": ("p_cosine", "p_lse")}.get(name, ())
    given = {"D": width, "CAPTION": caption, "CONTEXT": name == "contexts", "BEGUN": True, **tiles}
    features = ("p_e", "p_v", "p_context", "p_w", "p_b")
    constants = {p: given[p] for p in kernel.arg_names if p in given} | dict.fromkeys(absent)
    types = {p: "*fp32" for p in kernel.arg_names if p.startswith("p_") and p not in features}
    types |= {"p_start": "*i32", "p_caption": "*i32"}
    types |= dict.fromkeys(("gamma", "gamma_attention", "gamma_pooling", "divisor"), "fp32")
    label = f"region_keyword {name} D={width}" + (f" captions of {caption}" if caption else "")
    return Case(
        kernel, label, dtype, architecture, constants, {**options, "enable_fp_fusion": True}, types,
        odd=("captions", "keywords", "regions", "images"),
    )  # fmt: skip


def _region_keyword_operands_case(name: str, dtype: str, width: int, architecture: int, variant: str) -> Case:
    """Features packed or gradients unpacked, of as many features as the packed ones have."""
    kernel = getattr(region_keyword_operands, f"{name}_kernel")
    block_d = min(width, region_keyword_operands.MOST_FEATURES)
    given = {"FEATURES": width, "D": width, "XMC": variant == "xmc", "ROWS": region_keyword_operands.ROWS}
    given |= {"BLOCK_D": block_d, "stride_d": 1}
    features = ("p_regions", "p_v", "p_keywords", "p_e", "p_dregions", "p_dkeywords")
    types = {p: "*fp32" for p in kernel.arg_names if p.startswith("p_") and p not in features}
    types |= dict.fromkeys(("p_count", "p_start", "p_caption", "p_order"), "*i32")
    return Case(
        kernel, f"region_keyword {name} {variant} D={width}", dtype, architecture,
        {p: given[p] for p in kernel.arg_names if p in given}, region_keyword_operands.OPTIONS, types,
        odd=("captions", "keywords", "regions", "images", "words", "parts"),
    )  # fmt: skip


def contrastive_loss_cases() -> Iterator[Case]:
    """All kernels for every architecture."""
    for name in ("forward", "backward", "normalize", "normalize_backward"):
        for architecture in SHARED_MEMORY:
            kernel = getattr(contrastive_loss, f"{name}_kernel")
            given = {"EXCLUDES": True, "BLOCK_M": contrastive_loss.BLOCK_M, "BLOCK_N": contrastive_loss.BLOCK_N}
            given |= {"SIDE": contrastive_loss.SIDE, "FEATURES": 256, "FLOOR": 1e-12, "BLOCK_D": 256}
            if name.startswith("normalize"):
                given |= {"BLOCK_M": contrastive_loss.ROWS, "x_feature": 1, "dy_feature": 1}
            constants = {p: given[p] for p in kernel.arg_names if p in given}
            yield Case(
                kernel,
                f"contrastive_loss {name}",
                "fp32",
                architecture,
                constants,
                contrastive_loss.OPTIONS,
                {"p_exclude": "*i1"},
            )


def compile_case(case: Case) -> Compiled:
    """Compile a case for its architecture."""
    signature, constants, attributes = {}, dict(case.constants), {}
    for place, parameter in enumerate(case.kernel.arg_names):
        if parameter in constants:
            signature[parameter] = "constexpr"
        elif parameter.startswith("p_"):
            signature[parameter] = case.types.get(parameter, f"*{case.dtype}")
            attributes[(place,)] = [["tt.divisibility", 16]]  # torch aligns its memory
        elif parameter.endswith("_c" if case.channels_last else ("_p", "_w")):  # what Triton makes of a stride of 1
            signature[parameter], constants[parameter] = "constexpr", 1
        else:
            signature[parameter] = case.types.get(parameter, "i32")
            if signature[parameter] == "i32" and case.aligned and parameter not in case.odd:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(case.kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", case.architecture, 32), options=case.options)
    used = _resources(compiled.asm["cubin"])
    return Compiled(used["REG"], used["STACK"] + used["LOCAL"], compiled.metadata.shared, compiled.asm["ptx"])


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True)
    usage = told.stdout + told.stderr
    return {name: int(found.group(1)) for name in ("REG", "STACK", "LOCAL") if (found := _usage(name, usage))}


def _usage(name: str, text: str) -> re.Match[str] | None:
    return re.search(rf"\b{name}:(\d+)", text)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.compile_all", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--json", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    print(f"Triton {triton.__version__}\n{'registers':>9} {'stack':>6} {'shared':>7}  tensor cores  case")
    sources, rows = source_digest(), []  # before compilation: nothing that changes meanwhile goes unnoticed
    for case in cases():
        found = compile_case(case)
        print(f"{found.registers:9} {found.stack:6} {found.shared:7}  {found.tensor_cores:12}  {case}", flush=True)
        rows.append(CompiledKernel(str(case), found.registers, found.stack, found.shared, found.tensor_cores))
    if arguments.json:
        KernelTable(triton.__version__, tuple(rows), sources).write(arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
