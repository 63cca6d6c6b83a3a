"""The trial that measures whether compiled steps are faster."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from fastt2i.engine.distributed.world import World
from fastt2i.engine.execution import compile_trial
from fastt2i.engine.execution.compile_trial import TIMED, WARM_UP, CompileTrial
from fastt2i.errors import UserError


class Trial:
    """A trial of two ways that take given numbers of seconds a step, by a clock of its own."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        plain: float,
        compiled: float | Exception,
        choice: bool | None = None,
        **settings: object,
    ) -> None:
        self.now, self.taken, self.said = 0.0, [], []
        monkeypatch.setattr(compile_trial.time, "perf_counter", lambda: self.now)

        def compile(inputs: object) -> Callable[..., None]:
            if isinstance(compiled, Exception):
                raise compiled
            return self.way("compiled", compiled)

        self.trial = CompileTrial(
            self.way("plain", plain),
            compile,
            device=torch.device("cpu"),
            steps=100_000,
            choice=choice,
            print_line=self.said.append,
            **settings,
        )

    def way(self, name: str, seconds: float) -> Callable[..., None]:
        def run(inputs: object, with_penalty: bool) -> None:
            self.taken.append(name)
            self.now += 50 if with_penalty else seconds

        return run

    def run(self, steps: int) -> list[str]:
        for step in range(steps):
            self.trial(None, step % 4 == 0, step)
        return [f"{name} {len(list(group))}" for name, group in itertools.groupby(self.taken)]


#: Steps until as many without a penalty are taken as a way is tried for: a quarter has one.
TRIED = (WARM_UP + TIMED) * 4 // 3 + 1


@pytest.mark.parametrize(("compiled", "choice"), [(0.5, True), (1.5, False)])
def test_the_faster_way_is_kept(compiled: float, choice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch, 1.0, compiled)
    tried, after = [f"plain {TRIED}", f"compiled {TRIED}"], 200 - 2 * TRIED
    assert trial.run(200) == ([tried[0], f"compiled {TRIED + after}"] if choice else [*tried, f"plain {after}"])
    assert trial.trial.choice is trial.trial.faster is choice
    assert trial.said == [
        f"torch.compile is {'on' if choice else 'off'}: {1e3 * compiled:.1f} ms a step, 1000.0 without"
    ]

    assert trial.trial.findings == {"compiled": choice, "ms_compiled": 1e3 * compiled, "ms_uncompiled": 1e3}


@pytest.mark.parametrize("compiled", [0.5, 1.5])
def test_the_other_way_is_let_go(compiled: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the graphs that it has captured."""
    trial = Trial(monkeypatch, 1.0, compiled)
    ways = [weakref.ref(trial.trial._run)]
    make = trial.trial._compile

    def compile(inputs: object) -> Callable[..., None]:
        way = make(inputs)
        ways.append(weakref.ref(way))
        return way

    trial.trial._compile = compile
    trial.run(200)
    gc.collect()
    assert [way() is not None for way in ways] == [compiled > 1, compiled < 1]


def test_a_short_run_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch, 0.001, 0.0005)
    assert trial.run(200) == ["plain 200"] and trial.trial.choice is False
    assert trial.said == [
        "torch.compile is off: what is left takes 1.7 min at 1.0 ms a step, and compiling is tried where it is 20 or "
        "more"
    ]
    assert trial.trial.findings == pytest.approx({"compiled": 0, "ms_uncompiled": 1.0})


def test_a_run_of_a_few_steps_is_told_why_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch, 1.0, 0.5)
    trial.trial(None, False, 100_000 - 7)
    assert trial.trial.choice is False
    assert trial.said == ["torch.compile is off: 7 steps are too few to find out whether it pays"]


def test_steps_that_all_have_the_penalty_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch, 1.0, 0.5, penalty_every_step=True)
    for step in range(100):
        trial.trial(None, True, step)
    assert trial.trial.choice is not None


NO_COMPILER = RuntimeError("no C++ compiler\nand so on")


@pytest.mark.parametrize("choice", [None, True])
def test_a_compiler_that_fails_ends_nothing(choice: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a run that was compiled before, as on another machine."""
    trial = Trial(monkeypatch, 1.0, NO_COMPILER, choice)
    assert trial.run(200) == ["plain 200"] and trial.trial.choice is False
    assert trial.said == ["warning: torch.compile is off, for it fails: RuntimeError: no C++ compiler"]


def test_a_compiler_that_fails_is_one_sentence_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "engine.compile is on, but torch.compile fails here: RuntimeError: no C.. compiler; put that right"
    with pytest.raises(UserError, match=sentence):
        Trial(monkeypatch, 1.0, NO_COMPILER, True, required=True).run(1)


class Second(World):
    """The second of two processes, which hears from the first what it decides, and how its compiler fails."""

    rank, size = 1, 2

    def __init__(self, decisions: Sequence[bool], failure: str = "") -> None:
        super().__init__()
        self.decisions, self.failure = list(decisions), failure

    def run_on_rank0(self, make: object) -> bool:
        return self.decisions.pop(0)

    def all_gather_object(self, value: str) -> list[str]:
        return [self.failure, value]


@pytest.mark.parametrize("faster", [True, False])
def test_all_ranks_do_what_the_first_decides(faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their own clocks say."""
    trial = Trial(monkeypatch, 1.0, 1.5 if faster else 0.5, world=Second([True, faster]))
    trial.run(200)
    assert trial.trial.choice is faster and trial.taken[-1] == ("compiled" if faster else "plain")


def test_no_rank_is_compiled_if_one_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(monkeypatch, 1.0, 0.5, world=Second([True], "OSError: no compiler"))
    assert trial.run(200) == ["plain 200"] and trial.trial.choice is False
    assert trial.said == ["warning: torch.compile is off, for it fails: OSError: no compiler"]


@pytest.mark.parametrize(("choice", "way"), [(True, "compiled"), (False, "plain")])
def test_a_choice_that_is_known_is_not_tried_again(choice: bool, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Trial(monkeypatch, 1.0, 1.0, choice).run(50) == [f"{way} 50"]


def test_libraries_that_cannot_be_loaded_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a Ctrl-C ended the linker: every later run failed."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    libraries = [tmp_path / "cache" / "ab" / f"{name}.main.so" for name in "cd"]
    libraries[0].parent.mkdir(parents=True)
    for library in libraries:
        library.touch()

    def compile(inputs: object) -> Callable[..., None]:
        for library in libraries:
            if library.exists():
                raise RuntimeError(f"InductorError: ImportError: {library}: file too short")
        return lambda inputs, with_penalty: None

    trial = CompileTrial(compile, compile, device=torch.device("cpu"), steps=9, choice=True, print_line=print)
    trial(None, False, 0)
    assert trial.choice is True and not any(map(Path.exists, libraries))


@pytest.mark.parametrize("folder", ["cache", "elsewhere"])
def test_a_library_that_stays_damaged_is_told(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is damaged each time, and one that is not the compiler's, which nobody may delete."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    library = tmp_path / folder / "a.so"
    library.parent.mkdir()

    def compile(inputs: object) -> Callable[..., None]:
        library.touch()
        raise OSError(f"{library}: invalid ELF header")

    said: list[str] = []
    trial = CompileTrial(
        lambda inputs, with_penalty: None,
        compile,
        device=torch.device("cpu"),
        steps=9,
        choice=True,
        print_line=said.append,
    )
    trial(None, False, 0)
    assert trial.choice is False and library.exists()
    assert said == [f"warning: torch.compile is off, for it fails: OSError: {library}: invalid ELF header"]
