"""Networks under torch.compile: what compiled code saves for the backward pass."""

from __future__ import annotations

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.joint_graph import joint_graph_passes

from fastt2i.models.discriminator import DiscriminatorBlock

pytestmark = pytest.mark.quick


class _Alone(torch.nn.Module):
    """A block of its own; its output is flattened where it is the last."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.block, self.last = DiscriminatorBlock(6, 8), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.block(x, torch.nn.functional.avg_pool2d(x, 2), pool=False)
        return y.flatten(1) if self.last else y


@pytest.mark.parametrize("last", [False, True])
def test_a_compiled_discriminator_keeps_no_mask_on_a_cpu(last: bool) -> None:
    """Its derivatives are those of one that is not compiled, at what is not finite too.

    last: the block's output is flattened, so that its gradient comes in another memory format.
    """
    kept: list[torch.Tensor] = []

    def partition(graph: torch.fx.GraphModule, inputs: object, **settings: object) -> object:
        joint_graph_passes(graph)
        return min_cut_rematerialization_partition(graph, inputs, **settings)

    def keep(graph: torch.fx.GraphModule, _: object) -> object:
        kept.extend(node.meta["val"] for node in graph.graph.find_nodes(op="output")[0].all_input_nodes)
        return make_boxed_func(graph)

    compiler = aot_autograd(
        fw_compiler=keep,
        bw_compiler=lambda graph, _: make_boxed_func(graph),
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    block = _Alone(last).to(torch.bfloat16)
    x = torch.randn(2, 6, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn_like(block(x))
    upstream.view(2, 8, -1)[0, :, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -1.0, 3.0])
    plain, compiled = (
        torch.autograd.grad(run(x), (x, *block.parameters()), upstream)
        for run in (block, torch.compile(block, fullgraph=True, backend=compiler))
    )
    torch.testing.assert_close(compiled, plain, equal_nan=True)
    assert kept and torch.bool not in {tensor.dtype for tensor in kept}
