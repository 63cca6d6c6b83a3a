"""DALI gives what Pillow gives: pixels within rounding, and the same samples whatever is broken."""

from __future__ import annotations

import io
import multiprocessing
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Condition
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import Decoder
from fastt2i.data.loaders.choose import choose_loader
from fastt2i.data.loaders.loader import Batch, Loader
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.errors import UserError

pytest.importorskip("nvidia.dali")
from fastt2i.data.loaders.dali import DaliLoader
from fastt2i.data.loaders.pillow import PillowLoader

Damages = dict[str, tuple[Callable[[bytes], bytes], str]]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ORIENTATION = 0x0112


def picture(width: int, height: int, seed: int, low: int = 0, high: int = 255) -> Image.Image:
    """Coarse and fine structure within these levels, as in a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (height // 9 + 2, width // 9 + 2, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)) + random.normal(
        0, 12, (height, width, 3)
    )
    return Image.fromarray((pixels.clip(0, 255) / 255 * (high - low) + low).astype(np.uint8))


def encode(image: Image.Image, format: str, orientation: int = 1, **options: object) -> bytes:
    if orientation != 1:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def transparent(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(image.getchannel("G"))
    return image


FORMATS: dict[str, Callable[..., bytes]] = {
    "jpeg 4:2:0": lambda image, o: encode(image, "JPEG", o, quality=90),
    "jpeg 4:4:4": lambda image, o: encode(image, "JPEG", o, quality=90, subsampling=0),
    "progressive jpeg": lambda image, o: encode(image, "JPEG", o, progressive=True),
    "gray jpeg": lambda image, o: encode(image.convert("L"), "JPEG", o),
    "cmyk jpeg": lambda image, o: encode(image.convert("CMYK"), "JPEG", o),
    "png": lambda image, o: encode(image, "PNG", o),
    "gray png of 16 bits": lambda image, o: encode(
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257), "PNG", o
    ),
    "transparent png": lambda image, o: encode(transparent(image), "PNG", o),
    "png with a palette": lambda image, o: encode(image.quantize(100), "PNG", o),
    "webp": lambda image, o: encode(image, "WEBP", o),
    "lossless webp": lambda image, o: encode(image, "WEBP", o, lossless=True),
    "transparent webp": lambda image, o: encode(transparent(image), "WEBP", o),
    "bmp": lambda image, o: encode(image, "BMP"),
    "bmp with a palette": lambda image, o: encode(image.quantize(16), "BMP"),
}
SHAPES = {  # width, height, box: to be shrunk much, a little, enlarged, and with odd margins
    "large": (500, 375, None),
    "odd": (90, 61, None),
    "upright": (61, 90, None),
    "small": (23, 20, None),
    "exact": (48, 48, None),
    "box": (200, 150, (20, 31, 131, 128)),
    "box beyond": (100, 80, (-10, 30, 57, 99)),
}


def index_of(contents: list[bytes], boxes: list[tuple[int, ...] | None] | None = None) -> Dataset:
    whole = (-(10**6), -(10**6), 10**6, 10**6)
    crops = None if boxes is None else np.array([box or whole for box in boxes], dtype=np.int64)
    return Dataset(
        name="pictures",
        keys=[str(number) for number in range(len(contents))],
        captions=[(f"picture {number}",) for number in range(len(contents))],
        read=contents.__getitem__,
        crops=crops,
    )


def start(dataset: Dataset, name: Any, *, batch_size: int = 8, size: int = 16, first: int = 0, **more: Any) -> Loader:
    sampler = Sampler(dataset.caption_table(), batch_size=batch_size, seed=4, flip=True, margin=more.pop("margin", 0))
    settings = {"image_size": size, "max_bad_fraction": more.pop("fraction", 1.0), "start_step": first}
    if name == "pillow":
        return PillowLoader(dataset, sampler, workers=0, **settings)
    device = torch.device(more.pop("device", "cpu"))
    return DaliLoader(dataset, sampler, threads=2, device=device, **settings, **more)


def take(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def assert_same_samples(batches: list[Batch], others: list[Batch]) -> None:
    for batch, other in zip(batches, others, strict=True):
        for part, expected in zip(batch[1:], other[1:], strict=True):
            assert torch.equal(part, expected) and part.dtype == expected.dtype


def difference(batch: Batch, other: Batch) -> torch.Tensor:
    """Grey levels (B,...) between two batches of images."""
    assert batch.images.shape == other.images.shape and batch.images.dtype == torch.uint8
    return (batch.images.cpu().int() - other.images.int()).abs().flatten(1).float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("format", FORMATS)
def test_pixels_are_pillows_but_for_rounding(format: str, device: str) -> None:
    """Decoded on a CPU they are the same, and what is resized differs by roundings alone where nothing is clipped.

    Pillow rounds to 8 bits between rows and columns, DALI does not. The cubic filter's weights sum to at most 1.25 in
    magnitude, so that half a level of the first rounding and half a level of each last one make at most 1.6: two
    levels. DALI takes the weights from a table, which adds one or two where much is shrunk. The GPU's decoder has
    another inverse transform and another chroma filter: some levels at every pixel.
    """
    contents, boxes = [], []
    for orientation in range(1, 9):
        for seed, (width, height, box) in enumerate(SHAPES.values()):
            contents.append(FORMATS[format](picture(width, height, seed, 50, 200), orientation))
            boxes.append(box)
    dataset = index_of(contents, boxes)
    kinds = {"batch_size": len(contents), "size": 48}
    (expected,) = take(start(dataset, "pillow", **kinds), 1)
    dali = start(dataset, "dali", device=device, **kinds)
    (batch,) = take(dali, 1)
    assert batch.images.device.type == device and batch.images.is_contiguous() and not dali.quarantine.problems
    assert_same_samples([batch], [expected])
    off = difference(batch, expected)
    most, mean = (4, 0.5) if device == "cpu" else (32, 2)
    assert off.max() <= most and off.mean(dim=1).max() <= mean


def test_clipped_highlights_and_shadows_differ_little() -> None:
    """Below 0 and above 255 Pillow clips between rows and columns, DALI at the end alone."""
    dataset = index_of([FORMATS["jpeg 4:2:0"](picture(500, 375, seed), 1) for seed in range(8)])
    (batch,), (expected,) = (take(start(dataset, name, size=64), 1) for name in ("dali", "pillow"))
    off = difference(batch, expected)
    assert off.mean() < 0.4 and off.max() <= 16 and (off > 2).float().mean() < 0.01


@pytest.mark.parametrize("device", DEVICES)
def test_a_random_part_is_pillows(device: str) -> None:
    """Of images that are turned on their sides too: it is cut when all else is done."""
    contents = [FORMATS["png"](picture(40, 30, o, 50, 200), o) for o in range(1, 9)]
    dataset = index_of(contents)
    kinds = {"size": 19, "margin": 3}
    (expected,), (batch,) = (take(start(dataset, name, **kinds), 1) for name in ("pillow", "dali"))
    assert batch.images.shape == (8, 16, 16, 3) and batch.images.is_contiguous()
    assert_same_samples([batch], [expected])
    assert difference(batch, expected).max() <= 4


def damaged_folder(folder: Path, damages: Damages) -> tuple[Path, dict[str, str]]:
    """Forty images of which eight are broken, each in a way of its own; and the reasons, by name."""
    folder.mkdir()
    reasons = {}
    for number in range(40):
        content = encode(picture(30 + number, 50, number), "JPEG")
        if number % 5 == 2:
            damage, reason = list(damages.values())[number // 5]
            content, reasons[f"{number:02d}.jpg"] = damage(content), reason
        (folder / f"{number:02d}.jpg").write_bytes(content)
        (folder / f"{number:02d}.txt").write_text(f"picture {number}\nnumber {number}\n")
    return folder, reasons


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("readers", [0, 2])
def test_broken_files_are_replaced_as_pillows_loader_does(
    tmp_path: Path, damages: Damages, device: str, readers: int
) -> None:
    folder, reasons = damaged_folder(tmp_path / "images", damages)
    dataset = folder_dataset(str(folder), "all")
    pillow, dali = start(dataset, "pillow"), start(dataset, "dali", device=device, readers=readers)
    expected, batches = take(pillow, 12), take(dali, 12)
    assert_same_samples(batches, expected)
    assert max(difference(*pair).max() for pair in zip(batches, expected, strict=True)) <= 16
    found = {problem.where: problem.what for problem in (*dataset.problems, *dali.quarantine.problems)}
    assert found.keys() == reasons.keys()
    assert all(re.search(reasons[name], found[name]) for name in reasons)
    assert sorted(dali.quarantine.problems, key=str) == sorted(pillow.quarantine.problems, key=str)
    assert multiprocessing.active_children() == []


def broken_inside(content: bytes) -> bytes:
    """The last checksum of the pixels is wrong: DALI refuses it, Pillow does not; neither header nor end tells."""
    end = content.rindex(b"IEND") - 8
    return content[:end] + bytes(4) + content[end + 4 :]


def lost_inside(content: bytes) -> bytes:
    """Neither can decode it."""
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 9]) + content[middle + 9 :]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("readers", "refused", "lost"), [(0, (3, 11), (4, 5, 19)), (1, (3,), (4,))])
def test_a_batch_that_dali_cannot_decode_is_rescued(
    device: str, readers: int, refused: tuple[int, ...], lost: tuple[int, ...]
) -> None:
    contents = [encode(picture(40, 30, number), "PNG") for number in range(24)]
    for number in refused:
        contents[number] = broken_inside(contents[number])
    for number in lost:
        contents[number] = lost_inside(contents[number])
    dataset = Dataset(
        name="pictures",
        keys=[str(number) for number in range(24)],
        captions=[(f"picture {number}",) for number in range(24)],
        read=Contents(contents),
    )
    pillow, dali = start(dataset, "pillow"), start(dataset, "dali", device=device, readers=readers)
    expected, batches = take(pillow, 9), take(dali, 9)
    assert_same_samples(batches, expected)
    assert max(difference(*pair).max() for pair in zip(batches, expected, strict=True)) <= 16
    assert {problem.where for problem in dali.quarantine.problems} == {str(number) for number in lost}
    assert sorted(dali.quarantine.problems, key=str) == sorted(pillow.quarantine.problems, key=str)
    for batch, other in zip(take(start(dataset, "dali", device=device, first=5), 4), batches[5:], strict=True):
        assert torch.equal(batch.images, other.images)  # what was known before does not show


class Contents:
    """Reads from a list, in any process."""

    def __init__(self, contents: list[bytes]) -> None:
        self._contents = contents

    def __call__(self, sample: int) -> bytes:
        return self._contents[sample]


def test_a_pipeline_that_dies_is_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = index_of([encode(picture(40, 30, number), "PNG") for number in range(24)])
    whole = take(start(dataset, "dali"), 5)
    loader = start(dataset, "dali")
    batches = [next(loader)]
    monkeypatch.setattr(loader._pipeline, "run", fail)
    batches += take(loader, 4)
    for batch, expected in zip(batches, whole, strict=True):
        assert all(torch.equal(*parts) for parts in zip(batch, expected, strict=True))


def fail(*arguments: object) -> None:
    raise RuntimeError("Critical error in pipeline:\nencountered:\n\nout of memory\n")


def test_dali_that_fails_for_nothing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from nvidia import dali

    dataset = index_of([encode(picture(40, 30, number), "PNG") for number in range(24)])
    loader = start(dataset, "dali")
    run = dali.Pipeline.run
    monkeypatch.setattr(dali.Pipeline, "run", lambda self, stream: run(self) if self.max_batch_size == 1 else fail())
    with pytest.raises(UserError, match=r"one by one \(out of memory\); --data.loader pillow goes without it"):
        next(loader)


def test_too_many_bad_images_end_the_run_with_a_sentence() -> None:
    contents = [encode(picture(40, 30, number), "PNG") for number in range(30)]
    with pytest.raises(UserError, match="none of the 30 images"):
        take(start(index_of([b""] * 30), "dali", fraction=0.05), 10)
    with pytest.raises(UserError, match="more than the fraction 0.05"):
        take(start(index_of([b""] * 5 + contents[5:]), "dali", fraction=0.05), 10)


def test_resuming_and_ranks() -> None:
    dataset = index_of([encode(picture(40, 30, number), "JPEG") for number in range(9)] + [b""] * 3)
    whole = take(start(dataset, "dali"), 6)
    for batch, expected in zip(take(start(dataset, "dali", first=3), 3), whole[3:], strict=True):
        assert all(torch.equal(*parts) for parts in zip(batch, expected, strict=True))
    ranks = []
    for rank in range(2):
        sampler = Sampler(dataset.caption_table(), batch_size=8, seed=4, flip=True, rank=rank, world_size=2)
        loader = DaliLoader(dataset, sampler, image_size=16, threads=1, max_bad_fraction=1)
        ranks.append(take(loader, 6))
    for step in range(6):
        for part in Batch._fields:
            assert torch.equal(torch.cat([getattr(rank[step], part) for rank in ranks]), getattr(whole[step], part))


def test_batches_are_not_written_over_by_later_ones() -> None:
    dataset = index_of([encode(picture(40, 30, number), "PNG") for number in range(24)])
    loader = start(dataset, "dali")
    first = next(loader)
    before = first.images.clone()
    take(loader, 8)
    assert torch.equal(first.images, before)
    with pytest.raises(StopIteration):
        next(loader)


READER = """
import sys
import fastt2i.data.loaders.dali_source
assert "torch" not in sys.modules, "reader processes would import torch"
"""


def test_an_interrupt_keeps_no_lock_from_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes just before this process gives a lock back, which nobody would do then."""
    loader = start(index_of([encode(picture(40, 30, 1), "PNG")] * 9), "dali", readers=2)
    give_back = Condition.__exit__

    def interrupted(self: Condition, *error: Any) -> None:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)
        give_back(self, *error)

    monkeypatch.setattr(Condition, "__exit__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(loader)
    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(20)
    assert not closing.is_alive()


def test_reader_processes_import_no_torch() -> None:
    subprocess.run([sys.executable, "-c", READER], check=True, cwd=Path(__file__).parents[2])


def test_without_dali_a_sentence_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastt2i.data.loaders import dali

    monkeypatch.setattr(dali.importlib.util, "find_spec", lambda name: None)
    dataset = index_of([encode(picture(40, 30, 0), "PNG")] * 4)
    sampler = Sampler(dataset.caption_table(), batch_size=4, seed=4, flip=True)
    with pytest.raises(UserError, match=r"NVIDIA DALI is not installed; pip install 'fastt2i\[dali\]'"):
        choose_loader(dataset, sampler, DataConfig(loader="dali"), image_size=16, device=None)


def test_pixels_do_not_depend_on_the_decoder_where_nothing_is_resized() -> None:
    dataset = index_of([encode(picture(16, 16, number), "JPEG") for number in range(8)])
    decode = Decoder.of(dataset, 16)
    sampler = Sampler(dataset.caption_table(), batch_size=8, seed=4, flip=False)
    (batch,) = take(DaliLoader(dataset, sampler, image_size=16, threads=1, max_bad_fraction=1), 1)
    for image, sample in zip(batch.images, batch.samples, strict=True):
        np.testing.assert_array_equal(image.numpy(), decode(int(sample)))
