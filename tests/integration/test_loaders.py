"""Both loaders give the plan's images and captions, the same ones, whatever is broken."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import Decoder, decode
from fastt2i.data.loaders.choose import choose_loader
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.loaders.loader import Batch, Loader
from fastt2i.data.open import open_dataset
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.errors import UserError

IMAGE_SIZE = 16
KINDS = {  # memory; in this process; in two workers
    "memory": {"workers": 2},
    "in_process": {"workers": 0, "loader": "pillow"},
    "workers": {"workers": 2, "loader": "pillow"},
}
QUICK_KINDS = [pytest.param(kind, marks=[] if kind == "workers" else pytest.mark.quick) for kind in KINDS]
REPOSITORY = Path(__file__).resolve().parents[2]


def start(
    dataset: Dataset,
    kind: str,
    *,
    batch_size: int = 6,
    flip: bool = True,
    margin: int = 0,
    start_step: int = 0,
    fraction: float = 1.0,
    **ranks: int,
) -> Loader:
    sampler = Sampler(dataset.caption_table(), batch_size=batch_size, seed=4, flip=flip, margin=margin, **ranks)
    config = DataConfig(max_bad_fraction=fraction, **KINDS[kind])
    size = IMAGE_SIZE + margin
    name = choose_loader(dataset, sampler, config, image_size=size, device=None).name
    return open_loader(dataset, sampler, config, image_size=size, name=name, start_step=start_step, progress=False)


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    for batch, other in zip(batches, others, strict=True):
        for part, expected in zip(batch, other, strict=True):
            assert part.dtype == expected.dtype
            assert torch.equal(part, expected)


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_a_random_part_is_cut_from_the_mirrored_image(captioned_folder: Callable[..., Path], kind: str) -> None:
    dataset = folder_dataset(captioned_folder(11), "all")
    sampler = Sampler(dataset.caption_table(), batch_size=6, seed=4, flip=True, margin=3)
    decode = Decoder.of(dataset, IMAGE_SIZE + 3)
    for step, batch in enumerate(take(start(dataset, kind, margin=3), 3)):
        plan = sampler.plan(step)
        for image, sample, flip, (top, left) in zip(batch.images, plan.samples, plan.flips, plan.corners, strict=True):
            whole = decode(int(sample))
            whole = whole[:, ::-1] if flip else whole
            expected = whole[top : top + IMAGE_SIZE, left : left + IMAGE_SIZE]
            np.testing.assert_array_equal(image.numpy(), expected)


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_a_batch_is_what_the_plan_says(captioned_folder: Callable[..., Path], kind: str) -> None:
    dataset = folder_dataset(captioned_folder(11), "all")
    table = dataset.caption_table()
    sampler = Sampler(table, batch_size=6, seed=4, flip=True)
    for step, batch in enumerate(take(start(dataset, kind), 5)):
        plan = sampler.plan(step)
        assert batch.images.shape == (6, IMAGE_SIZE, IMAGE_SIZE, 3) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous()
        assert batch.caption_ids.tolist() == plan.caption_ids.tolist()
        assert batch.mismatched_ids.tolist() == plan.mismatched_ids.tolist()
        assert batch.samples.tolist() == plan.samples.tolist()
        assert batch.caption_ids.dtype == batch.mismatched_ids.dtype == torch.int64
        for image, caption, sample, flip in zip(
            batch.images.numpy(), batch.caption_ids, plan.samples, plan.flips, strict=True
        ):
            expected = decode(dataset.read(int(sample)), IMAGE_SIZE)
            np.testing.assert_array_equal(image, expected[:, ::-1] if flip else expected)
            assert table.captions[caption] in dataset.captions[sample]
        assert plan.flips.any() and not plan.flips.all()


@pytest.mark.parametrize("bad", [(), (0, 3, 4, 8)])
def test_all_loaders_agree(captioned_folder: Callable[..., Path], bad: tuple[int, ...]) -> None:
    dataset = folder_dataset(captioned_folder(11, bad), "all")
    loaders = {kind: start(dataset, kind) for kind in KINDS}
    batches = {kind: take(loader, 8) for kind, loader in loaders.items()}
    assert_same(batches["in_process"], batches["memory"])
    assert_same(batches["workers"], batches["memory"])
    for loader in loaders.values():
        assert sorted(problem.where for problem in loader.quarantine.problems) == [f"{i:03d}.png" for i in bad]
        assert all(problem.what.startswith("damaged: ") for problem in loader.quarantine.problems)


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_captions_and_images_stay_together_past_bad_images(captioned_folder: Callable[..., Path], kind: str) -> None:
    """Checked by content: every picture is different, and its captions name its number."""
    bad = (0, 3, 4, 8)
    dataset = folder_dataset(captioned_folder(11, bad), "all")
    captions = dataset.caption_table().captions
    numbers = {decode(dataset.read(i), IMAGE_SIZE).tobytes(): i for i in range(11) if i not in bad}
    for batch in take(start(dataset, kind, flip=False), 8):
        for image, caption, mismatched, sample in zip(*batch, strict=True):
            number = numbers[image.numpy().tobytes()]
            assert sample == number
            assert str(number) in captions[caption].split()
            assert str(number) not in captions[mismatched].split()


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_resuming_is_starting_at_a_step(captioned_folder: Callable[..., Path], kind: str) -> None:
    dataset = folder_dataset(captioned_folder(11, (2, 5)), "all")
    assert_same(take(start(dataset, kind, start_step=5), 3), take(start(dataset, kind), 8)[5:])


@pytest.mark.parametrize("bad", [(), (0, 3, 4, 8)])
@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_ranks_share_the_batches(captioned_folder: Callable[..., Path], kind: str, bad: tuple[int, ...]) -> None:
    dataset = folder_dataset(captioned_folder(11, bad), "all")
    whole = take(start(dataset, kind), 8)
    ranks = [take(start(dataset, kind, rank=rank, world_size=2), 8) for rank in range(2)]
    together = [Batch(*map(torch.cat, zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)]
    assert_same(together, whole)


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_a_batch_larger_than_the_set(captioned_folder: Callable[..., Path], kind: str) -> None:
    dataset = folder_dataset(captioned_folder(1), "all")
    (batch,) = take(start(dataset, kind, batch_size=4), 1)
    assert len(batch.images) == 4


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_a_file_that_vanishes_is_bad(captioned_folder: Callable[..., Path], kind: str) -> None:
    folder = captioned_folder(30)
    dataset = folder_dataset(folder, "all")
    (folder / "007.png").unlink()
    loader = start(dataset, kind, batch_size=30)
    take(loader, 2)
    assert [problem.where for problem in loader.quarantine.problems] == ["007.png"]
    assert "No such file" in loader.quarantine.problems[0].what


@pytest.mark.parametrize("kind", QUICK_KINDS)
@pytest.mark.parametrize(
    ("count", "bad", "message"), [(30, 5, "more than the fraction 0.05"), (12, 12, "none of the 12 images")]
)
def test_too_many_bad_images_end_the_run_with_a_sentence(
    captioned_folder: Callable[..., Path], kind: str, count: int, bad: int, message: str
) -> None:
    dataset = folder_dataset(captioned_folder(count, tuple(range(bad))), "all")
    with pytest.raises(UserError, match=message) as caught:
        take(start(dataset, kind, fraction=0.05), 10)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_workers_start_after_torch_has_used_threads_and_leave_when_closed() -> None:
    """The embedded set: workers must be able to draw it too."""
    (torch.ones(300, 300) @ torch.ones(300, 300)).sum()
    dataset = open_dataset("shapes", image_size=IMAGE_SIZE)
    loader = start(dataset, "workers")
    next(loader)
    workers = [process.pid for process in multiprocessing.active_children()]
    assert len(workers) == 2
    loader.close()
    assert multiprocessing.active_children() == []
    with pytest.raises(StopIteration):
        next(loader)
    loader.close()


def test_memory_leaves_nothing_running(captioned_folder: Callable[..., Path]) -> None:
    loader = start(folder_dataset(captioned_folder(5), "all"), "memory")
    assert multiprocessing.active_children() == []
    next(loader)


PROGRAM = """
    import sys
    from fastt2i.data.loaders.{module} import {loader}
    from fastt2i.data.sampler import Sampler
    from fastt2i.data.sources.folder import folder_dataset

    if __name__ == "__main__":
        dataset = folder_dataset(sys.argv[1], "all")
        sampler = Sampler(dataset.caption_table(), batch_size=4, seed=0, flip=False)
        loader = {loader}(dataset, sampler, image_size=16, max_bad_fraction=1, {settings})
        try:
            for number, batch in enumerate(loader):
                if number == 3:
                    import multiprocessing
                    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        except KeyboardInterrupt:
            loader.close()
            sys.exit("interrupted")
"""
PROGRAMS = {
    "pillow": {"module": "pillow", "loader": "PillowLoader", "settings": "workers=2"},
    "dali": {"module": "dali", "loader": "DaliLoader", "settings": "threads=1, readers=2"},
}


@pytest.fixture(params=PROGRAMS)
def program(
    request: pytest.FixtureRequest, captioned_folder: Callable[..., Path], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program in a process group of its own that loads with two workers; and the workers' ids."""
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(PROGRAM.format(**PROGRAMS[request.param])))
    process = subprocess.Popen(
        [sys.executable, script, captioned_folder(9)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield process, [int(number) for number in process.stdout.readline().split()]
    finally:
        process.kill()
        process.communicate()


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(ids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while remaining := [number for number in ids if is_running(number)]:
        assert time.monotonic() < deadline, f"processes {remaining} are still there"
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_an_interrupt_ends_workers_without_a_word(program: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = program
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (said, process.returncode) == ("interrupted\n", 1)
    wait_until_gone(workers)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_workers_do_not_survive_a_killed_parent(program: tuple[subprocess.Popen[str], list[int]]) -> None:
    process, workers = program
    assert len(workers) == 2
    process.kill()
    process.wait(timeout=20)
    wait_until_gone(workers)


def test_progress_is_silent_when_quick(
    captioned_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = folder_dataset(captioned_folder(5), "all")
    sampler = Sampler(dataset.caption_table(), batch_size=2, seed=0, flip=False)
    open_loader(dataset, sampler, DataConfig(), image_size=16, name="memory")
    assert capfd.readouterr() == ("", "")


def test_mending_a_file_mends_the_set(captioned_folder: Callable[..., Path], picture: Callable[..., bytes]) -> None:
    """Nothing about bad images is kept between runs."""
    folder = captioned_folder(6, (2,))
    loader = start(folder_dataset(folder, "all"), "memory")
    assert [problem.where for problem in loader.quarantine.problems] == ["002.png"]
    shutil.copy(folder / "001.png", folder / "002.png")
    assert start(folder_dataset(folder, "all"), "memory").quarantine.problems == []
