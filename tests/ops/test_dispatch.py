"""Which implementation runs, and what a person is told of the others."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch

from fastt2i import ops
from fastt2i.ops import dispatch, upsample_gated_conv2d

CPU = torch.device("cpu")


def test_every_registered_operator_lists_every_implementation() -> None:
    names = dispatch.operators()
    assert {"gate", "gated_conv2d", "upsample_gated_conv2d", "region_keyword_scores"} <= set(names)
    for op in names:
        listed = dispatch.implementations(op, CPU, torch.float32)
        assert set(listed) == {"reference", "torch", "triton"}
        assert listed["reference"] is None
        assert isinstance(listed["triton"], str) and listed["triton"].strip()
        for reason in listed.values():
            assert reason is None or "\n" not in reason
    assert dispatch.implementations("upsample_gated_conv2d", CPU, torch.float32)["torch"] is None


@pytest.mark.parametrize(
    ("batch", "size", "expected"),
    [(16, 8, "torch"), (15, 8, "reference"), (1, 32, "torch"), (1000, 7, "reference"), (0, 32, "reference")],
)
def test_the_rule_of_upsampling(batch: int, size: int, expected: str) -> None:
    x, weight = torch.randn(batch, 3, size, size), torch.randn(8, 3, 3, 3)
    chosen = dispatch.select("upsample_gated_conv2d", None, x.shape, x.device, x.dtype)
    named = dispatch.select("upsample_gated_conv2d", expected, x.shape, x.device, x.dtype)
    assert chosen is named
    assert torch.equal(upsample_gated_conv2d(x, weight), upsample_gated_conv2d(x, weight, impl=expected))


def test_no_other_device_is_sent_to_what_was_measured_on_a_cpu() -> None:
    shape = torch.Size((2, 3, 32, 32))
    chosen = dispatch.select("upsample_gated_conv2d", None, shape, torch.device("cuda"), torch.float32)
    assert chosen is dispatch.select("upsample_gated_conv2d", "reference", shape, torch.device("cuda"), torch.float32)


def test_reasons_name_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastt2i.kernels import launch

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert "CUDA" in (launch.unavailable_reason("cpu") or "")
    assert launch.unavailable_reason("cuda") is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert launch.unavailable_reason("cpu") is None
    assert dispatch.implementations("gate", CPU, torch.float32)["triton"] is None
    assert "kernel for gated_conv2d" in (dispatch.implementations("gated_conv2d", CPU, torch.float32)["triton"] or "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
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
        "region_keyword_loss": "(regions, keywords, keyword_mask=None, *, variant='xmc', gamma_attention=5.0, "
        "gamma_pooling=5.0, gamma_matching=50.0, exclude=None, impl=None)",
    }
    for name, signature in expected.items():
        found = inspect.signature(getattr(ops, name))
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
        assert str(inspect.Signature(bare)) == signature
    assert set(ops.__all__) == {*expected, "global_match_loss"}


@pytest.mark.parametrize(
    "imported,absent",
    [
        ("fastt2i", ("torch", "numpy", "triton", "transformers")),
        ("fastt2i.kernels.launch", ("triton", "transformers")),
        ("fastt2i.ops", ("triton", "transformers")),
        ("fastt2i.nn", ("triton", "transformers")),
    ],
)
def test_imports_are_cheap(imported: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {imported}; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_package_has_a_version_and_no_other_names() -> None:
    import fastt2i

    assert fastt2i.__version__ == "0.1.0"
    with pytest.raises(AttributeError, match="no_such_name"):
        fastt2i.no_such_name  # noqa: B018
