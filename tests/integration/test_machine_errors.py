"""What is the machine's fault ends the work with a sentence; no image is called bad for it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import Decoder, decode
from fastt2i.data.loaders.choose import choose_loader
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.open import open_dataset
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.data.sources.parquet import _row_groups as row_groups
from fastt2i.data.tools.pack import pack
from fastt2i.data.tools.pack_shards import pack_shards
from fastt2i.data.tools.statistics import read_image_info
from fastt2i.data.tools.verify import verify
from fastt2i.errors import UserError
from fastt2i.files.io_errors import SystemIOError

pytestmark = pytest.mark.quick

LOADERS = {
    "memory": {"workers": 2},
    "pillow in this process": {"workers": 0, "loader": "pillow"},
    "pillow": {"workers": 2, "loader": "pillow"},
    "dali": {"workers": 1, "loader": "dali"},
}


@dataclass(frozen=True)
class Failing:
    """Reads as `read` does, but for one sample. Picklable, for the processes of loaders."""

    read: Callable[[int], bytes]
    sample: int
    error: Exception

    def __call__(self, sample: int) -> bytes:
        if sample == self.sample:
            raise self.error
        return self.read(sample)


@pytest.fixture
def failing(captioned_folder: Callable[..., Path], cache: Path) -> Callable[[Exception], Dataset]:
    """failing(error): thirty images, and the error where the fourth is read."""
    whole = folder_dataset(captioned_folder(30), "all")

    def make(error: Exception) -> Dataset:
        return Dataset(
            name="folder", keys=whole.keys, captions=whole.captions, read=Failing(whole.read, 3, error), stamp=str
        )

    return make


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_loaders_end_with_a_sentence_and_quarantine_nothing(
    failing: Callable[[Exception], Dataset], kind: str, error: Exception
) -> None:
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    dataset = failing(error)
    sampler = Sampler(dataset.caption_table(), batch_size=6, seed=0, flip=False)
    wanted = "not enough memory for image 3" if isinstance(error, MemoryError) else "image 3 cannot be read now"
    loaders, config = [], DataConfig(**LOADERS[kind])
    with pytest.raises(UserError, match=wanted) as caught:
        name = choose_loader(dataset, sampler, config, image_size=16, device=None).name
        loaders.append(open_loader(dataset, sampler, config, image_size=16, name=name, progress=False))
        with loaders[0] as loader:
            for _ in range(5):
                next(loader)
    assert "\n" not in str(caught.value)
    assert all(loader.quarantine.problems == [] for loader in loaders)


@pytest.mark.parametrize("workers", [0, 1])
def test_tools_end_with_a_sentence(failing: Callable[[Exception], Dataset], tmp_path: Path, workers: int) -> None:
    dataset = failing(OSError(errno.EMFILE, "Too many open files"))
    for tool in (
        lambda: verify(dataset, workers=workers, progress=False),
        lambda: read_image_info(dataset, workers=workers, progress=False),
        lambda: pack(dataset, tmp_path / "copies", progress=False),
        lambda: pack(dataset, tmp_path / "small", image_size=8, workers=workers, progress=False),
        lambda: pack_shards(dataset, tmp_path / "shards", shard_samples=9, shard_mb=9, progress=False),
    ):
        with pytest.raises(UserError, match="cannot be read now: Too many open files"):
            tool()
    assert not (tmp_path / "copies").exists() and not (tmp_path / "shards").exists()


def test_no_memory_says_nothing_of_an_image(picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    content = picture(1)
    for name in ("crop", "getexif"):
        with monkeypatch.context() as patched:
            patched.setattr(Image.Image, name, exhausted)
            with pytest.raises(MemoryError):
                decode(content, 8)
    with monkeypatch.context() as patched:
        patched.setattr(Image.Image, "crop", exhausted)
        with pytest.raises(SystemIOError, match="there is not enough memory for image 0"):
            Decoder([content].__getitem__, None, 8)(0)


LIMITED = """
import resource, sys
from fastt2i.data.decode import Decoder
content = open(sys.argv[1], "rb").read()
Decoder([content].__getitem__, None, 8)(0)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
Decoder([content].__getitem__, None, 8)(0)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks its size up in /proc")
def test_where_memory_really_ends(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((6000, 8000, 3), np.uint8)).save(tmp_path / "large.png")
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "large.png")]
    said = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True).stderr
    assert said.strip().endswith("there is not enough memory for image 0; nothing is wrong with that file itself")


@pytest.fixture
def no_file_left() -> Callable[[], AbstractContextManager[None]]:
    """A block in which this process can open no file."""

    @contextmanager
    def block() -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        free = os.open(os.devnull, os.O_RDONLY)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            os.close(free)

    return block


@pytest.mark.parametrize("format", ["folder", "webdataset", "parquet"])
def test_a_set_is_not_opened_in_part(
    format: str,
    tmp_path: Path,
    captioned_folder: Callable[..., Path],
    make_layout: Callable[[str, Path], str],
    no_file_left: Callable[[], AbstractContextManager[None]],
) -> None:
    """Where the system has no file left to open, nothing of a set is left out for that."""
    path = str(captioned_folder(3)) if format == "folder" else make_layout(format, tmp_path / "set")
    open_dataset(path, image_size=16)  # loads all modules that it takes
    for index in Path(path).rglob(".*.index.json"):
        index.unlink()
    with no_file_left(), pytest.raises(UserError, match="Too many open files"):
        open_dataset(path, format, image_size=16)


@pytest.mark.parametrize("format", ["folder", "webdataset", "parquet"])
def test_a_file_that_cannot_be_read_now_is_named(
    format: str,
    tmp_path: Path,
    captioned_folder: Callable[..., Path],
    make_layout: Callable[[str, Path], str],
    no_file_left: Callable[[], AbstractContextManager[None]],
) -> None:
    path = str(captioned_folder(3)) if format == "folder" else make_layout(format, tmp_path / "set")
    dataset = open_dataset(path, format, image_size=16, split="all")
    Decoder.of(dataset, 16)(1)  # loads all modules that it takes
    row_groups._read.clear()
    with no_file_left(), pytest.raises(SystemIOError, match=rf"^{path}/\S+ cannot be read now: .*Too many open files"):
        Decoder.of(dataset, 16)(1)
    Decoder.of(dataset, 16)(1)
