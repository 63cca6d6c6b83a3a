"""Which implementation runs, and what a person is told of the others."""

from __future__ import annotations

import inspect

import pytest
import torch

from fastt2i import ops
from fastt2i.ops import gated_conv2d
from fastt2i.ops.dispatch import registry
from fastt2i.ops.gated_conv import implementations

CPU = torch.device("cpu")


def chosen(op: str, *tensors: torch.Tensor, impl: str | None = None) -> str:
    """The name of what would run."""
    call = registry.make_call(op, *tensors, settings=(1,), num_key_tensors=2)
    with registry.recorded() as choices:
        registry.select(call, impl, tensors)
    [(recorded, name)] = choices
    assert recorded == call
    return name


def test_every_registered_operator_lists_every_implementation() -> None:
    names = registry.operators()
    assert {"gate", "gated_conv2d", "upsample_gated_conv2d", "region_keyword_scores"} <= set(names)
    for op in names:
        listed = registry.implementations(registry.example_call(op, CPU))
        assert set(listed) == {"reference", "torch", "triton"}
        assert listed["reference"] is None
        assert isinstance(listed["triton"], str) and listed["triton"].strip()
        for reason in listed.values():
            assert reason is None or "\n" not in reason


@pytest.mark.parametrize(
    ("dtype", "size", "multiplies", "expected"),
    [
        (torch.float32, 7, True, "torch/plain"),
        (torch.float32, 8, True, "torch/transposed"),
        (torch.float32, 31, False, "torch/transposed"),
        (torch.float32, 32, False, "torch/phases"),
        (torch.bfloat16, 15, True, "torch/plain"),
        (torch.bfloat16, 16, True, "torch/phases"),
        (torch.bfloat16, 7, False, "torch/transposed"),
        (torch.float16, 32, False, "torch/transposed"),
    ],
)
def test_the_rule_of_upsampling(
    dtype: torch.dtype, size: int, multiplies: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementations, "multiplies_bf16", lambda device: multiplies)
    x, weight = torch.randn(2, 3, size, size, dtype=dtype), torch.randn(8, 3, 3, 3, dtype=dtype)
    assert chosen("upsample_gated_conv2d", x, weight) == expected
    assert chosen("upsample_gated_conv2d", x, weight, impl="torch") == expected
    assert chosen("upsample_gated_conv2d", x, weight, impl="reference") == "reference"


@pytest.mark.parametrize(("keywords", "expected"), [(15, "reference"), (16, "torch")])
def test_the_rule_of_region_keyword_scores(keywords: int, expected: str) -> None:
    """From 2^24 multiply-adds of a similarity; on a GPU what was written for one."""
    v, e = torch.empty(16, 64, 64), torch.empty(16, keywords, 64)
    assert chosen("region_keyword_scores", v, e) == expected
    there = registry.make_call("region_keyword_scores", v, e, num_key_tensors=2)._replace(device=torch.device("cuda"))
    assert registry._REGISTRY["region_keyword_scores"].prefer(there) == ("triton", "torch")


def test_the_rule_of_the_gate() -> None:
    """From 2 MiB where a backward follows, and for short rows."""
    pre = torch.randn(2, 64, 64, 64)
    assert chosen("gate", pre) == "reference"
    assert chosen("gate", pre.requires_grad_()) == "torch"
    assert chosen("gate", pre[:, :, :-1].detach().requires_grad_()) == "reference"
    assert chosen("gate", pre.detach().double()[:1].requires_grad_()) == "torch"
    with torch.no_grad():
        assert chosen("gate", pre) == "reference"
        short = torch.randn(2, 48, 4, 4).contiguous(memory_format=torch.channels_last)
        assert chosen("gate", short) == "torch"
        assert chosen("gate", short.contiguous()) == "reference"
        assert chosen("gate", pre.contiguous(memory_format=torch.channels_last)) == "reference"  # a row fills two


@pytest.mark.parametrize(("stride", "expected"), [(1, "torch"), (2, "reference")])
def test_the_rule_of_gated_convolutions(stride: int, expected: str) -> None:
    """That of the gate, of what the convolution makes."""
    x, weight = torch.randn(2, 16, 64, 64, requires_grad=True), torch.randn(64, 16, 3, 3)
    with registry.recorded() as choices:
        gated_conv2d(x, weight, stride=stride, padding=1)
    assert [name for _, name in choices] == [expected]


def test_a_form_can_be_forced_where_it_can_run() -> None:
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(8, 3, 3, 3)
    forms = registry.forms(registry.make_call("upsample_gated_conv2d", x, weight, settings=(1,), num_key_tensors=2))
    there = [name for name, reason in forms.items() if reason is None]
    assert {"reference", "torch/phases", "torch/plain", "torch/transposed"} <= set(there)
    for name in there:
        with registry.forced(name):
            assert chosen("upsample_gated_conv2d", x, weight) == name
    for name in set(forms) - set(there):
        with registry.forced(name):
            assert chosen("upsample_gated_conv2d", x, weight) == "torch/transposed"


def test_reasons_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastt2i.kernels import launch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("fastt2i.kernels.launch.INSTALLED", True)
    assert "CUDA" in (launch.unavailable_reason("cpu") or "")
    assert launch.unavailable_reason("cuda") is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launch.unavailable_reason("cpu") is None
    assert registry.implementations(registry.example_call("gate", CPU))["triton"] is None
    assert registry.implementations(registry.example_call("gated_conv2d", CPU))["triton"] is None
    monkeypatch.setattr("fastt2i.kernels.launch.INSTALLED", False)
    assert launch.unavailable_reason("cuda") == "triton is not installed"


def test_public_names_and_signatures() -> None:
    """The contract of the package, to the letter."""
    expected = {
        "gated_conv2d": "(x, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, "
        "activation='leaky_relu', negative_slope=0.2, impl=None)",
        "upsample_gated_conv2d": "(x, weight, bias=None, *, activation='leaky_relu', negative_slope=0.2, impl=None)",
        "gate": "(pre, *, activation='leaky_relu', negative_slope=0.2, impl=None)",
        "region_keyword_scores": "(regions, keywords, keyword_mask=None, *, variant='xmc', gamma_attention=5.0, "
        "gamma_pooling=5.0, impl=None)",
        "region_keyword_attention": "(regions, keywords, keyword_mask=None, *, variant='xmc', gamma_attention=5.0)",
        "region_keyword_loss": "(regions, keywords, keyword_mask=None, *, variant='xmc', gamma_attention=5.0, "
        "gamma_pooling=5.0, gamma_matching=50.0, exclude=None, gather=None, equal_batch_sizes=False, impl=None)",
        "global_match_loss": "(global_features, sentences, temperature=0.1, exclude=None, *, gather=None, "
        "equal_batch_sizes=False)",
        "modulated_gated_block": "(x, upsampling, residual, *, gain=1.0, activation='leaky_relu', negative_slope=0.2, "
        "output_slope=1.0, impl=None)",
        "modulated_gated_conv2d": "(x, weight, bias, scale, shift, *, residual=None, gain=1.0, stride=1, padding=0, "
        "dilation=1, groups=1, activation='leaky_relu', negative_slope=0.2, impl=None)",
        "modulated_upsample_gated_conv2d": "(x, weight, bias, scale, shift, *, residual=None, gain=1.0, "
        "activation='leaky_relu', negative_slope=0.2, impl=None)",
        "leaky_conv2d": "(x, weight, bias=None, *, stride=1, padding=0, negative_slope=0.2, shortcut=None, gain=1.0, "
        "pool=False, impl=None)",
        "gather_batch": "(x, group, *, equal_batch_sizes=False)",
    }
    for name, signature in expected.items():
        found = inspect.signature(getattr(ops, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
        assert str(inspect.Signature(bare)) == signature
    assert set(ops.__all__) == {*expected, "tuning"}


def test_the_package_has_a_version_and_no_other_names() -> None:
    import fastt2i

    assert fastt2i.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no_such_name"):
        fastt2i.no_such_name  # noqa: B018


def test_captions_longer_than_the_kernels_take_go_through_torch_on_a_gpu() -> None:
    v, e = torch.zeros(1, 4, 8), torch.zeros(1, 129, 8)
    for variant, refused in (("damsm", True), ("xmc", False)):
        call = registry.make_call("region_keyword_scores", v, e, settings=(variant,), num_key_tensors=2)
        reason = registry.implementations(call._replace(device=torch.device("cuda")))["triton"]
        assert (reason is not None) == refused
        assert not refused or "129 for every caption" in str(reason)


def test_what_reads_lengths_on_the_host_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    v, e = torch.zeros(1, 4, 8), torch.zeros(1, 3, 8)
    call = registry.make_call("region_keyword_scores", v, e, settings=("xmc",), num_key_tensors=2)
    call = call._replace(device=torch.device("cuda"))
    assert registry.implementations(call)["torch"] is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert "cannot be captured in a CUDA graph" in str(registry.implementations(call)["torch"])
