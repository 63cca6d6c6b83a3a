"""Reading, decoding, resizing, whole loaders, and what a loader costs a training step: DALI and Pillow side by side.

All contenders of a case have the same bytes, the same filter and the same output, compared before anything is timed.
Ours is DALI; which of the two trains is decided by `--data.loader auto` on the machine at hand. A time is that of a
batch of 32, in the last cases of a step.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cases.training_step import captions_features, make_step
from benchmarks.conftest import Suite
from benchmarks.harness.comparison import Contender, Contest
from benchmarks.harness.result import OURS
from benchmarks.harness.timing import Candidate, Sample, Stopwatch
from fastt2i.config import DataConfig, preset
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import central_square, decode
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.loaders.loader import Loader, LoaderName
from fastt2i.data.open import open_dataset
from fastt2i.data.photographs import photographs_dataset
from fastt2i.data.sampler import Sampler
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.step import StepInputs

BATCH = 32
IMAGES = 128
WORKERS = 2
SIZES = {"500x375 to 256": (500, 375, 256), "256x256 to 256": (256, 256, 256), "256x256 to 64": (256, 256, 64)}
#: Steps that use up what a loader has made ahead, and that are timed then.
AHEAD, STEPS = 5, 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], Dataset]:
    """folders(width, height): JPEGs on disk."""
    made: dict[tuple[int, int], Dataset] = {}

    def make(width: int, height: int) -> Dataset:
        if (width, height) not in made:
            folder = tmp_path_factory.mktemp(f"{width}x{height}")
            source = photographs_dataset(IMAGES, width, height)
            for number in range(IMAGES):
                Path(folder, f"{number}.jpg").write_bytes(source.read(number))
                Path(folder, f"{number}.txt").write_text(f"photograph {number}")
            made[width, height] = folder_dataset(str(folder), "all")
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


def contest(what: str, case: str, images: int, **more: Any) -> Contest:
    return Contest(what, case, "", "step", work={"images": images}, **more)


@pytest.mark.importance(1)
@pytest.mark.parametrize("size", [(500, 375), (256, 256)], ids=["500x375", "256x256"])
def test_read(suite: Suite, folders: Callable[[int, int], Dataset], size: tuple[int, int]) -> None:
    """Through an index, which lets nothing lead out of the folder, and as any program reads files."""
    index, watch = folders(*size), Stopwatch(torch.device("cpu"))
    paths = [Path(index.name, key) for key in index.keys[:BATCH]]
    assert all(path.read_bytes() == index.read(number) for number, path in enumerate(paths))

    def ours() -> None:
        for number in range(BATCH):
            index.read(number)

    def plain() -> None:
        for path in paths:
            path.read_bytes()

    suite.hold(
        contest("read", f"{size[0]}x{size[1]}", BATCH),
        {OURS: Contender(watch.timed(ours, "step"), "ours"), "files": Contender(watch.timed(plain, "step"))},
    )


@pytest.mark.importance(3)
@pytest.mark.quick
@pytest.mark.parametrize("size", [(500, 375), (256, 256)], ids=["500x375", "256x256"])
def test_decode(suite: Suite, folders: Callable[[int, int], Dataset], size: tuple[int, int]) -> None:
    contents = [folders(*size).read(number) for number in range(BATCH)]
    decode_one_by_one(suite, "decode", f"{size[0]}x{size[1]}", contents, (*size, None), pixels)


@pytest.mark.importance(3)
@pytest.mark.parametrize("name", SIZES)
def test_decode_and_resize(suite: Suite, folders: Callable[[int, int], Dataset], name: str) -> None:
    width, height, size = SIZES[name]
    contents = [folders(width, height).read(number) for number in range(BATCH)]
    decode_one_by_one(suite, "decode and resize", name, contents, SIZES[name], lambda content: decode(content, size))


def decode_one_by_one(
    suite: Suite,
    what: str,
    case: str,
    contents: list[bytes],
    sizes: tuple[int, int, int | None],
    one: Callable[[bytes], NDArray[np.uint8]],
) -> None:
    """DALI against Pillow, a core each."""
    dali, watch = pipeline(contents, suite.device, *sizes), Stopwatch(torch.device("cpu"))

    def by_pillow() -> list[NDArray[np.uint8]]:
        return [one(content) for content in contents]

    assert_alike(on_the_host(dali.run()[0]), by_pillow(), suite.device)
    suite.hold(
        contest(what, f"{case}, 1 core", BATCH),
        {
            OURS: Contender(watch.timed(dali.run, "step"), "ours", f"DALI {'mixed' if suite.on_cuda else 'cpu'}"),
            "Pillow": Contender(watch.timed(by_pillow, "step")),
        },
    )


def start(name: LoaderName, index: Dataset, size: int, device: torch.device) -> Loader:
    sampler = Sampler(index.caption_table(), batch_size=BATCH, seed=0, flip=True)
    return open_loader(
        index, sampler, DataConfig(workers=WORKERS), image_size=size, name=name, device=device, progress=False
    )


@pytest.mark.importance(3)
@pytest.mark.parametrize("name", ["500x375 to 256", "256x256 to 64"])
def test_whole_loader(suite: Suite, folders: Callable[[int, int], Dataset], name: str) -> None:
    pytest.importorskip("nvidia.dali")
    width, height, size = SIZES[name]
    index = folders(width, height)
    with (
        start("dali", index, size, suite.device) as dali,
        start("pillow", index, size, suite.device) as pillow,
        start("memory", index, size, suite.device) as memory,
    ):
        first = [next(loader) for loader in (dali, pillow, memory)]
        for other in first[1:]:
            assert torch.equal(first[0].samples, other.samples)
            assert_alike(list(first[0].images.cpu().numpy()), list(other.images.cpu().numpy()), suite.device)
        suite.hold(
            contest("whole loader", f"{name}, {WORKERS} cores", BATCH, headline=name == "500x375 to 256"),
            {
                OURS: Contender(in_steady_state(dali, suite.device), "ours", "DALI"),
                "Pillow": Contender(in_steady_state(pillow, suite.device)),
                "memory": Contender(in_steady_state(memory, suite.device), "implementation"),
            },
        )


def in_steady_state(loader: Iterator[Any], device: torch.device) -> Candidate:
    """A batch of those that come when nothing is left of what was made ahead while others had their turn."""
    watch = Stopwatch(device)

    def sample(repeats: int) -> Sample:
        for _ in islice(loader, AHEAD):
            pass
        marks = [watch.mark()]
        for _ in islice(loader, STEPS * repeats):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(watch.mark())
        return {"step": watch.seconds(marks)[0] / (STEPS * repeats)}

    return sample


def inputs(loader: Loader, captions: int, config: Any, device: torch.device) -> Iterator[StepInputs]:
    """What steps take, with the loader's images."""
    return iter(
        InputSource(
            loader,
            captions_features(captions),
            None,
            noise_dim=config.model.noise_dim,
            draws=draws_per_image(config.loss.augment),
            seed=0,
            first_step=0,
            device=device,
        )
    )


@pytest.mark.importance(6)
@pytest.mark.parametrize("source", ["500x375", "256x256"])
def test_step(suite: Suite, folders: Callable[[int, int], Dataset], source: str) -> None:
    """The demo's step on a CPU, that of 256 px on a GPU: with each loader, and with tensors that are there already."""
    pytest.importorskip("nvidia.dali")
    config = preset("256px" if suite.on_cuda else "demo")
    size, batch = config.model.image_size, config.train.batch_size
    if suite.on_cuda:
        width, height = map(int, source.split("x"))
        index = folders(width, height)
    elif source == "500x375":
        index = open_dataset("shapes", image_size=size)
    else:
        pytest.skip("the demo has images of one size")
    table = index.caption_table()
    take, weight, watch = (
        make_step(config, suite.device),
        torch.tensor(0.01, device=suite.device),
        Stopwatch(suite.device),
    )
    opened: list[Loader] = []

    def open_one(name: LoaderName) -> Iterator[StepInputs]:
        sampler = Sampler(table, batch_size=batch, seed=0, flip=config.data.flip)
        opened.append(
            open_loader(index, sampler, config.data, image_size=size, name=name, device=suite.device, progress=False)
        )
        return inputs(opened[-1], len(table.captions), config, suite.device)

    def steps(source: Iterator[StepInputs], repeats: int) -> Sample:
        """Two that use up what was made ahead, four that count."""
        for given in islice(source, 2):
            take(given, weight, with_penalty=False)
        marks = [watch.mark()]
        for given in islice(source, 4 * repeats):
            take(given, weight, with_penalty=False)
        marks.append(watch.mark())
        return {"step": watch.seconds(marks)[0] / (4 * repeats)}

    # The demo's images fit into memory, so that is what `auto` takes there.
    mine: LoaderName = "dali" if suite.on_cuda else "memory"
    try:
        others: list[LoaderName] = [name for name in ("pillow", "dali", "memory") if name != mine]
        contenders = {OURS: Contender(partial(steps, open_one(mine)), "ours", mine)}
        contenders["cached tensors"] = Contender(partial(steps, cycle(list(islice(open_one("memory"), 8)))))
        contenders |= {name: Contender(partial(steps, open_one(name)), "implementation", name) for name in others}
        suite.hold(
            contest("step with loader", f"{'256px' if suite.on_cuda else 'demo'}, {source}, batch {batch}", batch),
            contenders,
        )
    finally:
        for loader in opened:
            loader.close()
