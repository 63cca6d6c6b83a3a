"""torch.func, forward mode, the meta device and torch.export: the reference's numbers at every size, or a sentence."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastt2i.nn import GatedConv2d
from fastt2i.nn.few_channel_conv import FewChannelConv2d
from fastt2i.ops import (
    gate,
    gated_conv2d,
    global_match_loss,
    region_keyword_loss,
    region_keyword_scores,
    upsample_gated_conv2d,
)

#: Sizes on both sides of every border between implementations on a CPU.
SIZES = (4, 16, 32, 64)
#: Large enough for the blocked implementation of the matching: 2^24 multiply-adds.
MATCHING = (64, 64, 8, 64)
WEIGHT = torch.randn(8, 4, 3, 3)


def region_keyword_inputs() -> tuple[Tensor, Tensor]:
    images, regions, keywords, dim = MATCHING
    return torch.randn(images, regions, dim), torch.randn(images, keywords, dim)


def image_function(name: str, size: int, impl: str | None) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A scalar function of an image's operator, and its argument."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(2, 4, size, size, generator=generator)
    weight = torch.randn(8, 4, 3, 3, generator=generator)
    wave = torch.linspace(-1, 1, 4)[:, None, None]
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "gate": lambda x: gate(x, impl=impl),
        "gated_conv2d": lambda x: gated_conv2d(x, weight, padding=1, impl=impl),
        "upsample_gated_conv2d": lambda x: upsample_gated_conv2d(x, weight, impl=impl),
    }
    return lambda x: (calls[name](x) * wave[: calls[name](x).shape[1]]).sum(), x


OPERATORS = ("gate", "gated_conv2d", "upsample_gated_conv2d")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_and_tangents_are_the_references(name: str, size: int) -> None:
    (ours, x), (reference, _) = image_function(name, size, None), image_function(name, size, "reference")
    tangent = torch.randn_like(x)
    torch.testing.assert_close(torch.func.grad(ours)(x), torch.func.grad(reference)(x))
    found, expected = (torch.func.jvp(f, (x,), (tangent,)) for f in (ours, reference))
    torch.testing.assert_close(found, expected)
    assert expected[1].abs() > 0
    _, linear = torch.func.linearize(ours, x)
    torch.testing.assert_close(linear(tangent), expected[1])
    with forward_ad.dual_level():
        dual = ours(forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, expected[1])


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_each_sample(name: str) -> None:
    ours, x = image_function(name, 32, None)
    each = torch.func.vmap(torch.func.grad(lambda sample: ours(sample[None])))(x)
    one_by_one = torch.stack([torch.func.grad(lambda sample: ours(sample[None]))(sample) for sample in x])
    torch.testing.assert_close(each, one_by_one)


@pytest.mark.parametrize("impl", [None, "reference"])
def test_the_matching_has_its_derivatives(impl: str | None) -> None:
    """The blocked implementation alone has no forward derivative; it gave 0."""
    torch.manual_seed(0)
    regions, keywords = region_keyword_inputs()
    tangent = torch.randn_like(regions)
    loss = partial(region_keyword_loss, keywords=keywords, impl=impl)
    wide = partial(region_keyword_loss, keywords=keywords.double(), impl="reference")
    _, found = torch.func.jvp(loss, (regions,), (tangent,))
    _, expected = torch.func.jvp(wide, (regions.double(),), (tangent.double(),))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs() > 0.01
    torch.testing.assert_close(torch.func.grad(loss)(regions), torch.autograd.functional.jacobian(loss, regions))


def test_an_implementation_without_them_says_so() -> None:
    regions, keywords = region_keyword_inputs()
    with pytest.raises(RuntimeError, match="impl='torch' cannot run: under torch.func and in forward mode"):
        torch.func.jvp(partial(region_keyword_scores, keywords=keywords, impl="torch"), (regions,), (regions,))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8, 4), (2, 1, 40, 40, 4)])
def test_vmap_over_channels_last(shape: tuple[int, ...]) -> None:
    x, weight = torch.randn(shape).permute(0, 1, 4, 2, 3), torch.randn(6, 4, 3, 3)
    convolved = torch.func.vmap(lambda x: gated_conv2d(x, weight, padding=1))(x)
    torch.testing.assert_close(convolved, torch.stack([gated_conv2d(one, weight, padding=1) for one in x]))
    torch.testing.assert_close(torch.func.vmap(gate)(x), torch.stack([gate(one) for one in x]))


def test_a_layer_with_few_channels_under_a_transform() -> None:
    layer, x = FewChannelConv2d(4, 3, 3), torch.randn(2, 4, 8, 8)
    plain = F.conv2d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(torch.func.vmap(lambda one: layer(one[None])[0])(x), plain)


def test_shapes_on_the_meta_device() -> None:
    x = torch.randn(1, 4, 8, 8, device="meta")
    assert GatedConv2d(4, 4, 3, device="meta")(x).shape == (1, 4, 6, 6)
    assert upsample_gated_conv2d(x, torch.empty(6, 4, 3, 3, device="meta")).shape == (1, 3, 16, 16)
    assert gate(x).device.type == "meta"
    regions, keywords = (torch.empty(2, n, 5, device="meta") for n in (7, 3))
    assert region_keyword_loss(regions, keywords).shape == ()
    assert global_match_loss(regions[:, 0], keywords[:, 0]).shape == ()


class Called(nn.Module):
    """A module that calls an operator, as torch.export takes it."""

    def __init__(self, operator: Callable[..., Tensor]) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.operator(*tensors)


@pytest.mark.parametrize(
    ("operator", "shapes"),
    [
        (gate, [(4, 8, 8)]),
        (partial(gated_conv2d, weight=WEIGHT, padding=1), [(4, 8, 8)]),
        (partial(upsample_gated_conv2d, weight=WEIGHT), [(4, 8, 8)]),
        (region_keyword_scores, [(9, 16), (5, 16)]),
        (region_keyword_loss, [(9, 16), (5, 16)]),
        (global_match_loss, [(16,), (16,)]),
    ],
)
def test_an_exported_operator_takes_any_batch(operator: Callable[..., Tensor], shapes: list[tuple[int, ...]]) -> None:
    few, many = ([torch.randn(batch, *shape) for shape in shapes] for batch in (3, 7))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(Called(operator), tuple(few), dynamic_shapes=(tuple({0: batch} for _ in few),))
    torch.testing.assert_close(exported.module()(*many), operator(*many))
