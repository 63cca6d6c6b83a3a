"""Parameters cast all at once: the same values and gradients as autocast's, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastt2i.engine.cast_parameters import cast_parameters

DTYPES = (torch.bfloat16, torch.float16)


class Network(nn.Module):
    """Layers of every layout that the two players have, one of 1x1 among them, and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)
        self.linear, self.unused = nn.Linear(5, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.narrow(self.wide(x).relu()).mean(dim=(2, 3)))


def network() -> Network:
    torch.manual_seed(0)
    return Network().to(memory_format=torch.channels_last)


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_autocast(dtype: torch.dtype, grouped: bool, channels_last: bool) -> None:
    x = torch.randn(4, 3, 9, 9).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    ours, theirs = network(), network()
    groups = [[p] for p in reversed(list(ours.parameters()))] if grouped else []
    with torch.autocast("cpu", dtype=dtype):
        own = functional_call(ours, cast_parameters(ours, dtype, groups), x)
        expected = theirs(x)
    assert torch.equal(own, expected) and own.dtype == dtype
    own.float().square().sum().backward()
    expected.float().square().sum().backward()
    for name, gradient in gradients(theirs).items():
        found, parameter = gradients(ours)[name], ours.get_parameter(name)
        assert (found is None) == (gradient is None) == (name.startswith("unused")), name
        if found is not None and gradient is not None:
            assert torch.equal(found, gradient) and found.dtype == torch.float32, name
            assert found.stride() == parameter.stride(), name


def test_copies_have_the_strides_of_their_parameters_and_follow_them() -> None:
    module = network()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    for name, made in cast_parameters(module, torch.bfloat16).items():
        parameter = module.get_parameter(name)
        assert torch.equal(made, parameter.bfloat16()) and made.stride() == parameter.stride()


def test_gradients_are_added_to_those_that_are_there() -> None:
    module, x = network(), torch.randn(2, 3, 5, 5)
    once, twice = copy.deepcopy(module), copy.deepcopy(module)
    for passes, own in ((1, once), (2, twice)):
        for _ in range(passes):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                functional_call(own, cast_parameters(own, torch.bfloat16), x).sum().backward()
    for name, gradient in gradients(once).items():
        assert gradient is None or torch.equal(gradients(twice)[name], 2 * gradient), name  # type: ignore[arg-type]


def test_frozen_parameters_get_no_gradient() -> None:
    module, x = network().requires_grad_(False), torch.randn(2, 3, 5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        functional_call(module, cast_parameters(module, torch.bfloat16), x).sum().backward()
    assert x.grad is not None and all(gradient is None for gradient in gradients(module).values())


def test_what_is_in_no_group_is_cast_too() -> None:
    """As parameters are that are never trained: their gradients do not travel."""
    module, x = network(), torch.randn(2, 3, 5, 5)
    module.narrow.requires_grad_(False)
    copies = cast_parameters(module, torch.bfloat16, [[*module.wide.parameters()], [*module.linear.parameters()]])
    assert list(copies) == [name for name, _ in module.named_parameters()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        functional_call(module, copies, x).sum().backward()
    reached = {name for name, gradient in gradients(module).items() if gradient is not None}
    assert reached == {"wide.weight", "wide.bias", "linear.weight", "linear.bias"}


def test_what_is_cast_cannot_be_differentiated_twice() -> None:
    module, x = network(), torch.randn(2, 3, 5, 5)
    loss = functional_call(module, cast_parameters(module, torch.bfloat16), x.bfloat16()).float().square().sum()
    [gradient] = torch.autograd.grad(loss, [module.linear.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
