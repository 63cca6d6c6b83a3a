"""Reading, decoding, resizing, whole loaders, and what a loader costs a training step: DALI and Pillow side by side.

    python -m pytest benchmarks/bench_loaders.py --benchmark-only

Each group has the same bytes, the same filter and the same output, compared before anything is timed. Names say how
many cores a candidate may use; a time is that of a batch of 32, in the last group of a step.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.steps import captions_features, make_step
from fastt2i.augment import draws_per_image
from fastt2i.config import DataConfig, preset
from fastt2i.data.index import Index, open_index
from fastt2i.data.integrity import central_square, decode
from fastt2i.data.loaders import LoaderName, open_loader
from fastt2i.data.loaders.loader import Loader
from fastt2i.data.photographs import photographs_index
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_index
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.step import StepInputs

BATCH = 32
IMAGES = 128
WORKERS = 2
SIZES = {"500x375 to 256": (500, 375, 256), "256x256 to 256": (256, 256, 256), "256x256 to 64": (256, 256, 64)}
LOADERS: tuple[LoaderName, ...] = ("pillow", "dali", "memory")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Index]:
    """folders(width, height): JPEGs on disk."""
    made: dict[tuple[int, int], Index] = {}

    def make(width: int, height: int) -> Index:
        if (width, height) not in made:
            folder = tmp_path_factory.mktemp(f"{width}x{height}")
            source = photographs_index(IMAGES, width, height)
            for number in range(IMAGES):
                Path(folder, f"{number}.jpg").write_bytes(source.read(number))
                Path(folder, f"{number}.txt").write_text(f"photograph {number}")
            made[width, height] = folder_index(str(folder), "all")
        return made[width, height]

    return make


def pipeline(contents: list[bytes], device: torch.device, width: int, height: int, size: int | None) -> Any:
    """DALI with one thread: decodes, and cuts and resizes where a size is given."""
    dali = pytest.importorskip("nvidia.dali")
    fn, types = dali.fn, dali.types
    arrays = [np.frombuffer(content, dtype=np.uint8) for content in contents]
    made = dali.Pipeline(
        batch_size=len(contents),
        num_threads=1,
        device_id=0 if device.type == "cuda" else None,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    with made:
        encoded = fn.external_source(lambda: arrays, dtype=types.UINT8, ndim=1)
        kind = "mixed" if device.type == "cuda" else "cpu"
        if size is None:
            images = fn.decoders.image(encoded, device=kind, jpeg_fancy_upsampling=True)
        else:
            left, top, side = central_square(width, height, None, 1)
            images = fn.decoders.image_slice(
                encoded, device=kind, start=(top, left), shape=(side, side), axes=(0, 1), jpeg_fancy_upsampling=True
            )
            interpolation = types.INTERP_NN if side == size else types.INTERP_CUBIC  # as the loader does
            images = fn.resize(images, size=(size, size), interp_type=interpolation, antialias=True)
        made.set_outputs(images)
    made.build()
    return made


def pixels(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.array(image.convert("RGB"))


def on_the_host(images: Any) -> list[NDArray[np.uint8]]:
    return [np.array(image) for image in (images.as_cpu() if hasattr(images, "as_cpu") else images)]


def assert_alike(found: list[NDArray[np.uint8]], expected: list[NDArray[np.uint8]], device: torch.device) -> None:
    """`tests/data/test_dali.py` says why this much."""
    for one, other in zip(found, expected, strict=True):
        off = np.abs(one.astype(int) - other)
        assert off.mean() <= (0.5 if device.type == "cpu" else 2) and off.max() <= (16 if device.type == "cpu" else 48)


@pytest.mark.parametrize("size", [(500, 375), (256, 256)], ids=["500x375", "256x256"])
@pytest.mark.benchmark(group="read")
def test_read(benchmark: Any, folders: Callable[[int, int], Index], size: tuple[int, int]) -> None:
    read = folders(*size).read
    benchmark.name = f"{size[0]}x{size[1]}"
    benchmark(lambda: [read(number) for number in range(BATCH)])


@pytest.mark.parametrize("who", ["pillow", "dali"])
@pytest.mark.parametrize("size", [(500, 375), (256, 256)], ids=["500x375", "256x256"])
def test_decode(
    benchmark: Any, folders: Callable[[int, int], Index], size: tuple[int, int], who: str, device: torch.device
) -> None:
    contents = [folders(*size).read(number) for number in range(BATCH)]
    benchmark.group = f"decode {size[0]}x{size[1]}, 1 core"
    if who == "pillow":
        benchmark(lambda: [pixels(content) for content in contents])
        return
    dali = pipeline(contents, device, *size, None)
    assert_alike(on_the_host(dali.run()[0]), [pixels(content) for content in contents], device)
    benchmark(dali.run)


@pytest.mark.parametrize("who", ["pillow", "dali"])
@pytest.mark.parametrize("name", SIZES)
def test_decode_and_resize(
    benchmark: Any, folders: Callable[[int, int], Index], name: str, who: str, device: torch.device
) -> None:
    width, height, size = SIZES[name]
    contents = [folders(width, height).read(number) for number in range(BATCH)]
    benchmark.group = f"decode and resize {name}, 1 core"
    if who == "pillow":
        benchmark(lambda: [decode(content, size) for content in contents])
        return
    dali = pipeline(contents, device, width, height, size)
    assert_alike(on_the_host(dali.run()[0]), [decode(content, size) for content in contents], device)
    benchmark(dali.run)


def start(name: LoaderName, index: Index, size: int, device: torch.device) -> Loader:
    if name == "dali":
        pytest.importorskip("nvidia.dali")
    sampler = Sampler(index.caption_table(), batch_size=BATCH, seed=0, flip=True)
    return open_loader(
        index, sampler, DataConfig(workers=WORKERS), image_size=size, name=name, device=device, progress=False
    )


@pytest.mark.parametrize("who", LOADERS)
@pytest.mark.parametrize("name", SIZES)
def test_whole_loader(
    benchmark: Any, folders: Callable[[int, int], Index], name: str, who: LoaderName, device: torch.device
) -> None:
    width, height, size = SIZES[name]
    index = folders(width, height)
    benchmark.group = f"whole loader {name}, {WORKERS} cores"
    with start(who, index, size, device) as loader, start("memory", index, size, device) as memory:
        found, expected = next(loader), next(memory)
        assert torch.equal(found.samples, expected.samples)
        assert_alike(list(found.images.cpu().numpy()), list(expected.images.numpy()), device)
        # Rounds of several steps, after some that use up what was made ahead.
        benchmark.pedantic(steps, (loader, 8, device), rounds=8, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = 8 * BATCH / benchmark.stats.stats.median


def steps(loader: Loader, number: int, device: torch.device) -> None:
    for _ in range(number):
        next(loader)
    if device.type == "cuda":
        torch.cuda.synchronize()


def cached(inputs: Iterator[StepInputs]) -> Iterator[StepInputs]:
    """Some inputs over and over."""
    kept = [inputs for inputs, _ in zip(inputs, range(8), strict=False)]
    return (kept[number % len(kept)] for number in count())


@pytest.mark.parametrize("who", LOADERS)
def test_step(benchmark: Any, who: LoaderName, device: torch.device) -> None:
    """The demo's step on a CPU, that of 256 px on a GPU: with the loader, and with tensors that are there already.

    The two take turns, so that neither has the better minutes of the machine.
    """
    config = preset("demo" if device.type == "cpu" else "256px")
    size, batch = config.model.image_size, config.train.batch_size
    index = open_index("shapes", image_size=size) if device.type == "cpu" else photographs_index(1024, 500, 375)
    table = index.caption_table()
    train_step, cache = make_step(config, device), captions_features(len(table.captions))
    if who == "dali":
        pytest.importorskip("nvidia.dali")

    def inputs(name: LoaderName) -> Iterator[StepInputs]:
        sampler = Sampler(table, batch_size=batch, seed=0, flip=config.data.flip)
        loader = open_loader(index, sampler, config.data, image_size=size, name=name, device=device, progress=False)
        opened.append(loader)
        return iter(
            InputSource(
                loader,
                cache,
                None,
                noise_dim=config.model.noise_dim,
                draws=draws_per_image(config.loss.augment),
                seed=0,
                first_step=0,
                device=device,
            )
        )

    opened: list[Loader] = []
    sources = {"loader": inputs(who), "cached": cached(inputs("memory"))}
    taken: dict[str, list[float]] = {name: [] for name in sources}
    number, weight = count(), torch.tensor(0.01, device=device)

    def take(name: str) -> None:
        began = time.perf_counter()
        train_step(next(sources[name]), weight, with_penalty=False)
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken[name].append(time.perf_counter() - began)

    def pair() -> None:
        order = ("loader", "cached") if next(number) % 2 else ("cached", "loader")
        for name in order:
            take(name)

    try:
        for _ in range(4):
            pair()
        for times in taken.values():
            times.clear()
        benchmark.group = f"a step with the loader and one with cached tensors, {size} px"
        benchmark.pedantic(pair, rounds=60)
    finally:
        for loader in opened:
            loader.close()
    medians = {name: statistics.median(times) for name, times in taken.items()}
    differences = [a - b for a, b in zip(taken["loader"], taken["cached"], strict=True)]
    benchmark.extra_info["loader_ms"] = 1e3 * medians["loader"]
    benchmark.extra_info["cached_ms"] = 1e3 * medians["cached"]
    benchmark.extra_info["loader_costs_percent"] = 100 * statistics.median(differences) / medians["cached"]
    print(f"\n{who}: {benchmark.extra_info}")
