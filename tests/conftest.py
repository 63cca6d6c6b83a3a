"""A cache of the tests' own, a small language model and an untrained model with it, and small true-to-layout samples of
every source, whose images show what captions say."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from tests.layouts import (
    DAMAGES,
    FORMATS,
    LAYOUTS,
    number_said,
    number_shown,
    said,
    shard_members,
    shown,
    write_tar,
)
from tests.tiny_runs import write_language_model, write_model

# How many examples every property is tried with; `make test-rest` asks for the second. A loaded machine is no failure.
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("full", max_examples=300, deadline=None)
settings.load_profile("quick")


#: What a machine that lends a GPU need not have; tests that need a GPU need none of it.
EXTRAS = ("tyro", "sklearn", "pyarrow", "nvidia")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Under `-m gpu` a file that cannot be imported for want of an extra is skipped; else it is an error."""
    report = yield
    missing = [name for name in EXTRAS if f"No module named '{name}" in str(report.longrepr)]  # type: ignore[attr-defined]
    if report.outcome == "failed" and missing and collector.config.option.markexpr == "gpu":  # type: ignore[attr-defined]
        report.outcome = "skipped"  # type: ignore[attr-defined]
        report.longrepr = (str(collector.path), 0, f"Skipped: {missing[0]} is not installed")  # type: ignore[attr-defined]
    return report


@pytest.fixture(scope="session", autouse=True)
def children_find_the_package() -> None:
    """Where the package is not installed, what tests start elsewhere finds it in the checkout."""
    try:
        version("fastt2i")
    except PackageNotFoundError:
        paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a person's cache holds decides no test, and no test leaves anything there."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def interrupts_reach_programs() -> None:
    """A shell that starts something in the background has it ignore Ctrl-C, and every program that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def programs_are_no_workers() -> None:
    """A suite that a test starts is not a worker of pytest-xdist, in which pytest-benchmark would time nothing."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with 16 features and a vocabulary of whole words."""
    return write_language_model(tmp_path_factory.mktemp("language-model"))


@pytest.fixture(scope="session")
def model_folder(language_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of 32 px, whose images differ from prompt to prompt and from seed to seed."""
    return write_model(tmp_path_factory.mktemp("models") / "untrained", language_model)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fastt2i"


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tmp_path: Path, cache: Path) -> tuple[str, str]:
    """The format of each layout in turn, and a path to a sample of it."""
    format, make = LAYOUTS[request.param]
    return format, make(tmp_path / request.param)


@pytest.fixture
def make_layout(cache: Path) -> Callable[[str, Path], str]:
    """make_layout(format, folder): writes a sample of twelve images and gives the path to name."""
    return lambda format, folder: FORMATS[format](folder)


@pytest.fixture
def damages() -> dict[str, tuple[Callable[[bytes], bytes], str]]:
    """By name: what damages an image file's content, and a pattern of the reason that is given for it."""
    return DAMAGES


@pytest.fixture
def make_tar() -> Callable[..., Path]:
    """make_tar(path, [(name, content), ...], format)."""
    return write_tar


@pytest.fixture
def members_of() -> Callable[[int], list[tuple[str, bytes]]]:
    return shard_members


@pytest.fixture
def image_of() -> Callable[..., bytes]:
    return shown


@pytest.fixture
def captions_of() -> Callable[[int], tuple[str, str]]:
    return said


@pytest.fixture
def number_in() -> Callable[[NDArray[np.uint8] | str], int]:
    """number_in(pixels or caption): the number that it shows or says."""
    return lambda content: number_said(content) if isinstance(content, str) else number_shown(content)


@pytest.fixture
def numbers_in() -> Callable[..., list[int]]:
    """numbers_in(index): the number that each sample shows and that all its captions say."""
    from fastt2i.data.dataset import Dataset
    from fastt2i.data.decode import Decoder

    def read(index: Dataset) -> list[int]:
        decode = Decoder.of(index, 16)
        numbers = [number_shown(decode(sample)) for sample in range(len(index))]
        for number, own in zip(numbers, index.captions, strict=True):
            assert {number_said(caption) for caption in own} == {number}
        return numbers

    return read


def _picture(seed: int, size: tuple[int, int] = (12, 10), format: str = "PNG") -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """picture(seed, size=(width, height), format="PNG"): the content of an image file, different for each seed."""
    return _picture


@pytest.fixture
def captioned_folder(tmp_path: Path) -> Callable[..., Path]:
    """captioned_folder(count, bad=()): images 000.png, 001.png ... with captions; those in `bad` cannot be decoded."""

    def make(count: int, bad: tuple[int, ...] = ()) -> Path:
        folder = tmp_path / f"folder-{count}-{len(bad)}"
        folder.mkdir()
        for number in range(count):
            content = _picture(number)
            (folder / f"{number:03d}.png").write_bytes(content[: len(content) // 2] if number in bad else content)
            (folder / f"{number:03d}.txt").write_text(f"picture {number}\nnumber {number} again\n")
        return folder

    return make
