"""Times of implementations: taken when asked, checked first, kept, and what they decide."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastt2i import doctor
from fastt2i.ops import dispatch, reference, times, tuning, upsample_gated_conv2d
from fastt2i.ops.dispatch import Implementation

CPU = torch.device("cpu")
X, WEIGHT = torch.randn(5, 3, 8, 8), torch.randn(8, 3, 3, 3)
KEY = "upsample_gated_conv2d 5x3x8x8 8x3x3x3 fp32 contiguous inference"


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(times, "_tables", {})


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Implementation]]:
    """What the operator can be computed by, to be replaced by a test."""
    operator = dispatch._REGISTRY["upsample_gated_conv2d"]
    found = {"reference": Implementation(reference.upsample_gated_conv2d)}
    monkeypatch.setitem(
        dispatch._REGISTRY, "upsample_gated_conv2d", dispatch.Operator(found, operator.prefer, operator.rule)
    )
    yield found


def chosen(x: Tensor = X) -> str:
    call = dispatch.describe("upsample_gated_conv2d", x, WEIGHT, shaping=2)
    run = dispatch.select(call, None, (x, WEIGHT, None, "leaky_relu", 0.2))
    implementations = dispatch._REGISTRY["upsample_gated_conv2d"].implementations
    return next(name for name, found in implementations.items() if found.run is run)


def test_nothing_is_timed_unless_asked() -> None:
    upsample_gated_conv2d(X, WEIGHT)
    assert times.table_of(CPU) == {} and not times.path_of(CPU).exists()


def test_times_are_taken_once_kept_and_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    with tuning():
        y = upsample_gated_conv2d(X, WEIGHT)
    torch.testing.assert_close(y, upsample_gated_conv2d(X, WEIGHT, impl="reference"))
    table = json.loads(times.path_of(CPU).read_text())
    assert table["versions"]["torch"] == torch.__version__
    taken = table["milliseconds"][KEY]
    assert set(taken) == {"reference", "torch/phases", "torch/transposed", "torch/plain"}
    assert all(t > 0 for t in taken.values())
    assert chosen() == min(taken, key=taken.get)
    # Another process reads what this one wrote, and measures nothing.
    monkeypatch.setattr(times, "_tables", {})
    monkeypatch.setattr(times, "measure", lambda *_: pytest.fail("timed again"))
    with tuning():
        assert chosen() == min(taken, key=taken.get)


def test_the_fastest_runs_in_its_direction_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {KEY: {"reference": 2.0, "torch/phases": 1.0, "torch/transposed": 3.0, "torch/plain": None}}
    monkeypatch.setattr(times, "_tables", {"cpu:0": table})
    assert chosen() == "torch/phases"
    assert chosen(X.clone().requires_grad_()) == "torch/transposed"  # the rule of thumb: nothing is known of training
    assert chosen(X[:4]) == "torch/transposed"


def test_training_and_inference_have_times_of_their_own() -> None:
    with tuning():
        upsample_gated_conv2d(X, WEIGHT.clone().requires_grad_())
        upsample_gated_conv2d(X, WEIGHT)
    assert set(times.table_of(CPU)) == {KEY, KEY.replace("inference", "training")}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda x, *rest: 1.001 * reference.upsample_gated_conv2d(x, *rest), "its result is wrong by 1.0e-03, more"),
        (lambda x, *rest: reference.upsample_gated_conv2d(x.detach(), *rest) + 0 * x.sum(), "its gradient 1 is wrong"),
        (lambda *arguments: [][0], "it fails: list index out of range"),
        (lambda x, *rest: torch.nan * reference.upsample_gated_conv2d(x, *rest), "its result is wrong by nan"),
    ],
)
def test_what_is_wrong_is_left_out_by_name(candidates: dict[str, Implementation], wrong: object, sentence: str) -> None:
    candidates["triton/wrong"] = Implementation(wrong)
    x = X.clone().requires_grad_()
    with tuning(), pytest.warns(UserWarning, match="triton/wrong is left out, for " + sentence):
        upsample_gated_conv2d(x, WEIGHT)
    assert chosen(x) == "reference"
    assert list(times.table_of(CPU).values()) == [{"reference": pytest.approx(1, abs=1e4), "triton/wrong": None}]
    with tuning(), warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        upsample_gated_conv2d(x, WEIGHT)


def test_one_wrong_tail_of_a_large_batch_is_found(candidates: dict[str, Implementation]) -> None:
    def wrong_in_the_last_pixel(x: Tensor, *rest: object) -> Tensor:
        y = reference.upsample_gated_conv2d(x, *rest).clone()
        y[-1, -1, -1, -1] += 1
        return y

    candidates["triton/tail"] = Implementation(wrong_in_the_last_pixel)
    with tuning(), pytest.warns(UserWarning, match="triton/tail is left out, for its result is wrong"):
        upsample_gated_conv2d(X, WEIGHT)


def test_a_new_call_during_capture_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="nothing can be timed while a CUDA graph is captured; run it once inside"):
        times.measure(torch.device("cuda"), KEY, False, {}, reference.upsample_gated_conv2d, (X,))


def test_a_table_that_cannot_be_read_or_written_is_a_warning() -> None:
    path = times.path_of(CPU)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(UserWarning, match="cannot be read .* and are taken anew"), tuning():
        upsample_gated_conv2d(X, WEIGHT)
    assert KEY in json.loads(path.read_text())["milliseconds"]


def test_what_others_wrote_meanwhile_stays() -> None:
    times.table_of(CPU)
    path = times.path_of(CPU)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"milliseconds": {"theirs": {"reference": 1.0}}}))
    with tuning():
        upsample_gated_conv2d(X, WEIGHT)
    assert {"theirs", KEY} == set(json.loads(path.read_text())["milliseconds"])


def test_empty_batches_are_not_timed() -> None:
    with tuning():
        assert upsample_gated_conv2d(X[:0], WEIGHT).shape == (0, 4, 16, 16)
    assert times.table_of(CPU) == {}


def test_compiled_code_uses_what_is_known_and_keeps_open_sizes_open(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {KEY: {"reference": 1.0, "torch/phases": 2.0}}
    monkeypatch.setattr(times, "_tables", {"cpu:0": table})
    compiled = torch.compile(lambda x: upsample_gated_conv2d(x, WEIGHT), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), upsample_gated_conv2d(X, WEIGHT))
    other = torch.randn(7, 3, 8, 8)
    torch._dynamo.mark_dynamic(other, 0)
    torch.testing.assert_close(compiled(other), upsample_gated_conv2d(other, WEIGHT, impl="reference"))


def test_the_doctor_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with tuning():
        upsample_gated_conv2d(X, WEIGHT)
    times.table_of(CPU)[KEY]["torch/plain"] = None
    doctor.main(["--times"])
    shown = capsys.readouterr().out
    assert str(times.path_of(CPU)) in shown and KEY in shown
    assert (
        "torch/plain      left out: wrong, or cannot run" in " ".join(shown.split("\n")) or "left out: wrong" in shown
    )


def test_folding_weights_at_a_kink_is_no_error() -> None:
    """Folded kernels are rounded once more; where leaky_relu's two slopes meet, that moves gradients by a percent."""
    x = torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    weight = (torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(1)) / 17).bfloat16().requires_grad_()
    with warnings.catch_warnings(), tuning():
        warnings.simplefilter("error")
        upsample_gated_conv2d(x, weight).sum().backward()
    (found,) = times.table_of(CPU).values()
    assert None not in found.values() and {"torch/phases", "torch/transposed"} < set(found)
