"""The region-keyword kernels compile for the GPUs that people have, without spilling registers, onto tensor cores."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: Shared memory that one program may have, in bytes.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
#: Kernel, rows of a caption's tile (0: `xmc`).
TILED = [("forward", 0), ("forward", 32), ("context", 0), ("context", 32), ("weights", 0), ("weights", 32)]
PLAIN = [("regions", 0), ("keywords", 0)]
CASES = [
    *((*tile, "bf16", width, arch) for tile in TILED + PLAIN for width in (32, 256, 768) for arch in SHARED),
    *((*tile, "fp16", 256, 90) for tile in TILED + PLAIN),
    *((*tile, "fp32", 256, arch) for tile in TILED + PLAIN for arch in SHARED),
    *((*tile, "fp32", 32, 90) for tile in TILED + PLAIN),
    # Captions that need a tile of their own size, and feature sizes between those above.
    *((name, 128, dtype, 256, 90) for name in ("forward", "context", "weights") for dtype in ("bf16", "fp32")),
    *(("context", 0, "bf16", width, 90) for width in (16, 128, 384)),
]


def compile_kernel(name: str, caption: int, dtype: str, width: int, architecture: int) -> Any:
    """Compile as the launchers do; `context` is the forward kernel as the backward pass uses it."""
    from fastt2i.kernels import region_keyword

    blocks = region_keyword.blocks(width, DTYPES[dtype], caption, architecture // 10)
    context = name == "context"
    if name in ("pool", "coefficients"):
        tile = {"CAPTION": 16, "BLOCK_J": 64, "BLOCK_M": 128, "num_warps": 4}
    else:
        tile = dict(getattr(blocks, "forward" if context else name))
    options = {"enable_fp_fusion": True} | {k: tile.pop(k) for k in ("num_warps", "num_stages") if k in tile}
    constants: dict[str, Any] = {"D": width, "CAPTION": caption, "CONTEXT": context} | tile
    absent = ("p_cosine", "p_lse") if context else ("p_context",) if name == "forward" else ()
    kernel = getattr(region_keyword, "forward_kernel" if context else f"{name}_kernel")
    signature, attributes, given = {}, {}, {}
    for place, parameter in enumerate(inspect.signature(kernel.fn).parameters):
        if parameter in constants or parameter in absent:
            signature[parameter], given[parameter] = "constexpr", constants.get(parameter)
        elif parameter.startswith("p_"):
            features = parameter in ("p_e", "p_v", "p_context", "p_w", "p_b")
            numbers = parameter in ("p_start", "p_caption")
            signature[parameter] = f"*{dtype}" if features else "*i32" if numbers else "*fp32"
            attributes[(place,)] = [["tt.divisibility", 16]]  # torch aligns its memory
        elif parameter in ("gamma", "divisor"):
            signature[parameter] = "fp32"
        else:
            signature[parameter] = "i32"
            if parameter in ("padded", "columns", "share"):  # what Triton is told of sizes that 16 divides
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, given, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=options)


@pytest.mark.parametrize(("name", "caption", "dtype", "width", "architecture"), CASES)
def test_it_compiles_for_tensor_cores_without_a_spill(
    name: str,
    caption: int,
    dtype: str,
    width: int,
    architecture: int,
    resources: Callable[[bytes], dict[str, int]],
) -> None:
    compiled = compile_kernel(name, caption, dtype, width, architecture)
    used = resources(compiled.asm["cubin"])
    assert used["STACK"] == 0 and used["LOCAL"] == 0, used
    assert compiled.metadata.shared <= SHARED[architecture]
    # float32 is multiplied as it is, not as TF32.
    assert (TENSOR_CORES[architecture] in compiled.asm["ptx"]) == (dtype != "fp32")


@pytest.mark.parametrize("name", ["pool", "coefficients"])
@pytest.mark.parametrize("architecture", SHARED)
def test_the_small_kernels_compile_without_a_spill(
    name: str, architecture: int, resources: Callable[[bytes], dict[str, int]]
) -> None:
    used = resources(compile_kernel(name, 16, "bf16", 256, architecture).asm["cubin"])
    assert used["STACK"] == 0 and used["LOCAL"] == 0, used
