"""Operators under torch.compile: whole graphs, the same results, cached times as constants of the trace."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastt2i.ops import gate, gated_conv2d, leaky_conv2d, region_keyword_scores, upsample_gated_conv2d
from fastt2i.ops.dispatch import timing_cache
from tests.unit.ops.gated_conv.test_torch_impl import UPSAMPLING, draw, form, parameters
from tests.unit.ops.region_keyword.test_torch_impl import VARIANTS, all_of, mask_of, upstream_of
from tests.unit.ops.region_keyword.test_torch_impl import draw as features

CPU = torch.device("cpu")
X, WEIGHT = torch.randn(5, 3, 8, 8), torch.randn(8, 3, 3, 3)
KEY = "upsample_gated_conv2d 5x3x8x8 8x3x3x3 fp32 contiguous inference leaky_relu unbiased"


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing_cache, "_loaded", {})


@pytest.mark.quick
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("op", [upsample_gated_conv2d, gated_conv2d])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_a_gated_convolution_compiles_without_a_graph_break(op: object, backend: str, dtype: torch.dtype) -> None:
    x, weight, bias = (tensor.to(dtype) for tensor in (draw(2, 3, 8, 8), *parameters(3, 4)))
    weight.requires_grad_()
    compiled = torch.compile(op, fullgraph=True, backend=backend)
    y = compiled(x, weight, bias)
    torch.testing.assert_close(y, op(x, weight, bias))
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), weight), torch.autograd.grad(op(x, weight, bias).sum(), weight)
    )


@pytest.mark.parametrize("name", UPSAMPLING)
def test_a_compiled_form_of_upsampling_gives_the_same(name: str) -> None:
    """Its memory format too, which the next convolution is chosen by."""
    x = draw(2, 3, 5, 7).to(memory_format=torch.channels_last)
    inputs = [t.requires_grad_() for t in (x, *parameters(3, 4))]
    run = functools.partial(form("upsample_gated_conv2d", name), activation="leaky_relu", negative_slope=0.2)
    truth, y = run(*inputs), torch.compile(run, fullgraph=True, backend="aot_eager")(*inputs)
    assert y.stride() == truth.stride()
    upstream = draw(*y.shape, seed=5)
    for a, b in zip(
        (y, *torch.autograd.grad(y, inputs, upstream)),
        (truth, *torch.autograd.grad(truth, inputs, upstream)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.quick
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_region_keyword_scores_compile_without_a_graph_break(variant: str, dynamic: bool) -> None:
    v, e = features((2, 3, 5, 4, 16), torch.float32, variant)
    mask = mask_of("ragged", 3, 4)
    eager = all_of(v, e, mask, variant=variant, impl="torch")

    def scores(v: Tensor, e: Tensor, mask: Tensor) -> Tensor:
        return region_keyword_scores(v, e, mask, variant=variant, impl="torch")

    compiled = torch.compile(scores, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for keep in (3, 2):
        v2, e2 = v.clone().requires_grad_(), e[:keep].clone().requires_grad_()
        out = compiled(v2, e2, mask[:keep])
        torch.testing.assert_close(out, eager["scores"][:, :keep])
        dv, de = torch.autograd.grad(out, (v2, e2), upstream_of(v, e)[:, :keep])
        torch.testing.assert_close(de, eager["keywords"][:keep])
        assert dv.shape == v.shape


def test_compiled_code_uses_cached_times_and_keeps_dynamic_sizes_dynamic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        timing_cache,
        "_loaded",
        {
            timing_cache._conditions(CPU): {
                KEY: {"reference": 1.0, "torch/phases": 4.0, "torch/transposed": 2.0, "torch/plain": 3.0}
            }
        },
    )
    compiled = torch.compile(lambda x: upsample_gated_conv2d(x, WEIGHT), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), upsample_gated_conv2d(X, WEIGHT))
    other = torch.randn(7, 3, 8, 8)
    torch._dynamo.mark_dynamic(other, 0)
    torch.testing.assert_close(compiled(other), upsample_gated_conv2d(other, WEIGHT, impl="reference"))


COMPILES = f"""
import torch
from fastt2i.ops import upsample_gated_conv2d

torch.set_num_threads({torch.get_num_threads()})
x, weight = torch.randn(5, 3, 8, 8), torch.randn(8, 3, 3, 3)

def backend(graph, inputs):
    print("transposed" if "conv_transpose2d" in graph.code else "reference" if "interpolate" in graph.code else graph)
    return graph

torch.compile(lambda x: upsample_gated_conv2d(x, weight), fullgraph=True, backend=backend)(x)
"""


@pytest.mark.usefixtures("own_cache")
def test_a_fresh_process_that_compiles_reads_the_table() -> None:
    def ran() -> str:
        done = subprocess.run([sys.executable, "-c", COMPILES], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert ran() == "transposed"
    timing_cache.store(CPU, KEY, {"reference": 1.0, "torch/phases": 4.0, "torch/transposed": 2.0, "torch/plain": 3.0})
    assert ran() == "reference"


def test_operators_do_not_share_the_compilers_limit_of_forms() -> None:
    torch._dynamo.reset()
    weight = torch.randn(2, 4, 1, 1)
    for operator, others in ((gate, ()), (leaky_conv2d, (weight,)), (gated_conv2d, (weight,))):
        compiled = torch.compile(operator, fullgraph=True, dynamic=False, backend="eager")
        for size in range(1, torch._dynamo.config.recompile_limit):
            compiled(torch.randn(1, 4, size, size), *others)
