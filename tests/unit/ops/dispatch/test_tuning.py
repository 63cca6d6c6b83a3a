"""Times of implementations: taken when asked, checked first, kept, and what they decide."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastt2i import doctor
from fastt2i.ops import gated_conv2d, tuning, upsample_gated_conv2d
from fastt2i.ops.dispatch import registry, timing_cache
from fastt2i.ops.dispatch import tuning as times
from fastt2i.ops.dispatch.correctness import compare, reference_results, results
from fastt2i.ops.dispatch.registry import Implementation
from fastt2i.ops.gated_conv import reference, torch_impl

CPU = torch.device("cpu")
X, WEIGHT = torch.randn(5, 3, 8, 8), torch.randn(8, 3, 3, 3)
KEY = "upsample_gated_conv2d 5x3x8x8 8x3x3x3 fp32 contiguous inference leaky_relu unbiased"


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(timing_cache, "_loaded", {})


@pytest.fixture
def candidates(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Implementation]]:
    """What the operator can be computed by, to be replaced by a test."""
    operator = registry._REGISTRY["upsample_gated_conv2d"]
    found = {"reference": Implementation(reference.upsample_gated_conv2d)}
    monkeypatch.setitem(
        registry._REGISTRY, "upsample_gated_conv2d", registry.Operator(found, operator.prefer, operator.heuristic)
    )
    yield found


def know(monkeypatch: pytest.MonkeyPatch, known: dict[str, dict[str, float | None]]) -> None:
    """Make this all that is known of the CPU."""
    monkeypatch.setattr(timing_cache, "_loaded", {timing_cache._conditions(CPU): known})


def chosen(x: Tensor = X, impl: str | None = None) -> str:
    with registry.recorded() as choices:
        upsample_gated_conv2d(x, WEIGHT, impl=impl)
    return choices[0][1]


def test_nothing_is_timed_unless_asked() -> None:
    upsample_gated_conv2d(X, WEIGHT)
    assert timing_cache.times_of(CPU) == {} and not timing_cache.cache_path(CPU).exists()


def test_times_are_taken_once_kept_and_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    with tuning():
        y = upsample_gated_conv2d(X, WEIGHT)
    torch.testing.assert_close(y, upsample_gated_conv2d(X, WEIGHT, impl="reference"))
    written = json.loads(timing_cache.cache_path(CPU).read_text())
    assert written["versions"]["torch"] == torch.__version__
    taken = written["milliseconds"][KEY]
    assert set(taken) == {"reference", "torch/phases", "torch/transposed", "torch/plain"}
    assert all(t > 0 for t in taken.values())
    assert chosen() == min(taken, key=taken.get)
    # Another process reads what this one wrote, and measures nothing.
    monkeypatch.setattr(timing_cache, "_loaded", {})
    monkeypatch.setattr(times, "measure", lambda *_: pytest.fail("timed again"))
    with tuning():
        assert chosen() == min(taken, key=taken.get)


def test_the_fastest_runs_in_its_direction_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    know(monkeypatch, {KEY: {"reference": 2.0, "torch/phases": 1.0, "torch/transposed": 3.0, "torch/plain": None}})
    assert chosen() == "torch/phases"
    assert chosen(X.clone().requires_grad_()) == "torch/transposed"  # the heuristic: nothing is known of training
    assert chosen(X[:4]) == "torch/transposed"


def test_times_of_some_say_nothing_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `impl` forced was timed alone: without it, the others are timed when asked, else the rule decides."""
    with tuning():
        upsample_gated_conv2d(X, WEIGHT, impl="torch")
    forms = {"torch/phases", "torch/transposed", "torch/plain"}
    taken = timing_cache.times_of(CPU)[KEY]
    assert set(taken) == forms and chosen(impl="torch") == min(taken, key=taken.get)
    timing_cache.times_of(CPU)[KEY] = dict.fromkeys(forms, 1.0) | {"torch/plain": 0.5}
    assert chosen() == "torch/transposed" and chosen(impl="torch") == "torch/plain"
    with tuning():
        upsample_gated_conv2d(X, WEIGHT)
    assert set(timing_cache.times_of(CPU)[KEY]) == {"reference", *forms}


def test_more_of_a_call_is_added_to_what_is_known() -> None:
    timing_cache.store(CPU, KEY, {"triton/a": 1.0, "reference": 2.0})
    timing_cache.store(CPU, KEY, {"torch": 3.0, "reference": 4.0})
    expected = {"triton/a": 1.0, "torch": 3.0, "reference": 4.0}
    assert timing_cache.times_of(CPU)[KEY] == expected
    assert json.loads(timing_cache.cache_path(CPU).read_text())["milliseconds"] == {KEY: expected}


@pytest.mark.parametrize("kind", ["triton", "torch"])
def test_what_was_left_out_does_not_run_when_asked_for_either(candidates: dict[str, Implementation], kind: str) -> None:
    candidates[f"{kind}/wrong"] = candidates[f"{kind}/worse"] = Implementation(lambda x, *rest: x)
    with tuning(), pytest.warns(UserWarning, match="left out"):
        upsample_gated_conv2d(X, WEIGHT)
    del candidates[f"{kind}/worse"]  # one alone is looked up too
    with pytest.raises(RuntimeError, match=f"impl='{kind}' cannot run: all of it was left out when times were taken"):
        upsample_gated_conv2d(X, WEIGHT, impl=kind)
    assert chosen() == "reference"


def test_a_call_whose_results_are_not_finite_is_not_timed() -> None:
    """Else all would be left out for good."""
    with tuning(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert upsample_gated_conv2d(torch.full_like(X, torch.nan), WEIGHT).isnan().all()
    assert timing_cache.times_of(CPU) == {}


def test_whatever_decides_the_work_tells_calls_apart() -> None:
    with tuning():
        for settings in ({}, {"activation": "elu"}, {"stride": 2}):
            gated_conv2d(X, WEIGHT, **settings)
            gated_conv2d(X, WEIGHT, torch.zeros(8), **settings)
    assert len(timing_cache.times_of(CPU)) == 6


def test_a_table_belongs_to_what_it_was_taken_with(monkeypatch: pytest.MonkeyPatch) -> None:
    timing_cache.store(CPU, KEY, {"reference": 1.0})
    before = timing_cache.cache_path(CPU)
    with monkeypatch.context() as changed:
        changed.setattr(torch, "get_num_threads", lambda: 97)
        assert timing_cache.times_of(CPU) == {} and timing_cache.cache_path(CPU) != before
    assert KEY in timing_cache.times_of(CPU) and timing_cache.cache_path(CPU) == before
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = timing_cache._conditions(torch.device("cuda"))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        assert timing_cache._conditions(torch.device("cuda")) != exact
    monkeypatch.setattr(timing_cache, "source_digest", lambda package: "other kernels")
    assert timing_cache.cache_path(CPU) != before


def test_training_and_inference_have_times_of_their_own() -> None:
    with tuning():
        upsample_gated_conv2d(X, WEIGHT.clone().requires_grad_())
        upsample_gated_conv2d(X, WEIGHT)
    assert set(timing_cache.times_of(CPU)) == {KEY, KEY.replace("inference", "training")}


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
    assert list(timing_cache.times_of(CPU).values()) == [{"reference": pytest.approx(1, abs=1e4), "triton/wrong": None}]
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
    path = timing_cache.cache_path(CPU)
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.warns(UserWarning, match="cannot be read .* and are taken anew"), tuning():
        upsample_gated_conv2d(X, WEIGHT)
    assert KEY in json.loads(path.read_text())["milliseconds"]


def test_what_others_wrote_meanwhile_stays() -> None:
    timing_cache.times_of(CPU)
    path = timing_cache.cache_path(CPU)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"milliseconds": {"theirs": {"reference": 1.0}}}))
    with tuning():
        upsample_gated_conv2d(X, WEIGHT)
    assert {"theirs", KEY} == set(json.loads(path.read_text())["milliseconds"])


def test_empty_batches_are_not_timed() -> None:
    with tuning():
        assert upsample_gated_conv2d(X[:0], WEIGHT).shape == (0, 4, 16, 16)
    assert timing_cache.times_of(CPU) == {}


def test_the_doctor_shows_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with tuning():
        upsample_gated_conv2d(X, WEIGHT)
    timing_cache.times_of(CPU)[KEY] = {"reference": 2.0, "torch/plain": None, "torch/phases": 1.5}
    doctor.main(["--times"])
    shown = capsys.readouterr().out.splitlines()
    assert f"  table            {timing_cache.cache_path(CPU)}" in shown
    at = shown.index(f"  {KEY}")
    assert [line.split(maxsplit=1) for line in shown[at + 1 : at + 4]] == [
        ["torch/phases", "1.500 ms"],
        ["reference", "2.000 ms"],
        ["torch/plain", "left out: wrong, or cannot run"],
    ]
    assert doctor._tables()["cpu"] == f"1 calls timed; the table is {timing_cache.cache_path(CPU)}"


def test_folding_weights_at_a_kink_is_no_error() -> None:
    """Folded kernels are rounded once more; where leaky_relu's two slopes meet, that moves gradients by a percent."""
    x = torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    weight = (torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(1)) / 17).bfloat16().requires_grad_()
    with warnings.catch_warnings(), tuning():
        warnings.simplefilter("error")
        upsample_gated_conv2d(x, weight).sum().backward()
    (found,) = timing_cache.times_of(CPU).values()
    assert None not in found.values() and {"torch/phases", "torch/transposed"} < set(found)


def at_a_kink() -> tuple[Tensor, Tensor]:
    """Float32 input and weight one of whose pre-activations a transposed convolution rounds to the other side of 0."""
    random = torch.Generator().manual_seed(2305)
    x, weight = torch.randn(4, 16, 16, 16, generator=random), torch.randn(32, 16, 3, 3, generator=random) / 12
    return x.requires_grad_(), weight.requires_grad_()


def test_an_element_at_a_kink_leaves_no_candidate_out() -> None:
    x, weight = at_a_kink()
    arguments = (x, weight, None, "leaky_relu", 0.2)
    found = results(torch_impl.transposed, arguments, True)
    error = compare(found, reference_results(reference.upsample_gated_conv2d, arguments, True))
    assert error is not None and "its gradient 1 is wrong by 3.3e-03" in error, (
        "no element is at a kink on this machine"
    )
    with warnings.catch_warnings(), tuning():
        warnings.simplefilter("error")
        upsample_gated_conv2d(x, weight)
    (found_times,) = timing_cache.times_of(CPU).values()
    assert None not in found_times.values()


@pytest.mark.parametrize("made", [at_a_kink, lambda: (X.clone().requires_grad_(), WEIGHT.clone().requires_grad_())])
def test_a_wrong_slope_of_the_negative_side_alone_is_left_out(
    candidates: dict[str, Implementation], made: Callable[[], tuple[Tensor, Tensor]]
) -> None:
    def wrong_backward(x: Tensor, weight: Tensor, bias: None, activation: str, slope: float) -> Tensor:
        right = reference.upsample_gated_conv2d(x, weight, bias, activation, slope)
        other = reference.upsample_gated_conv2d(x, weight, bias, activation, slope + 0.05)
        return right.detach() + other - other.detach()

    candidates["triton/wrong"] = Implementation(wrong_backward)
    with tuning(), pytest.warns(UserWarning, match="triton/wrong is left out, for its gradient 1 is wrong"):
        upsample_gated_conv2d(*made())
