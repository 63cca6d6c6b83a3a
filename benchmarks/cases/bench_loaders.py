"""Reading, decoding, resizing, whole loaders, and what a loader costs a training step: DALI and Pillow side by side.

All candidates of a case have the same bytes, the same filter and the same output, compared before anything is timed.
Ours is DALI; which of the two trains is decided by `--data.loader auto` on the machine at hand. A time is that of a
batch of 32, in the last cases of a step.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.cases.training_step import make_step, random_features
from benchmarks.harness.result import OURS
from benchmarks.harness.suite import Suite, Timed
from benchmarks.harness.timing import Sample, Sampler, Stopwatch
from fastt2i.config import Config, DataConfig
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import central_square, decode
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.loaders.loader import Loader, LoaderName
from fastt2i.data.open import open_dataset
from fastt2i.data.photographs import photographs_dataset
from fastt2i.data.sampler import Sampler as BatchSampler
from fastt2i.data.sources.folder import folder_dataset
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.step import StepInputs
from fastt2i.presets import preset

Images = list[NDArray[np.uint8]]
Folders = Callable[[int, int], Dataset]

BATCH, IMAGES, WORKERS = 32, 128, 2
WHOLE: dict[str, tuple[int, int, int | None]] = {"500x375": (500, 375, None), "256x256": (256, 256, None)}
SIZES = {"500x375 to 256": (500, 375, 256), "256x256 to 256": (256, 256, 256), "256x256 to 64": (256, 256, 64)}
#: Batches that use up what a loader has made ahead, and that are timed then: of whole loaders, and in steps.
AHEAD, COUNTED = {"loader": 5, "step": 2}, 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
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


def dali_pipeline(contents: list[bytes], device: torch.device, width: int, height: int, size: int | None) -> Any:
    """DALI with one thread: decodes, and crops and resizes where a size is given."""
    dali = pytest.importorskip("nvidia.dali")
    fn, types = dali.fn, dali.types
    arrays = [np.frombuffer(content, dtype=np.uint8) for content in contents]
    device_id, kind = (0, "mixed") if device.type == "cuda" else (None, "cpu")
    synchronous = {"prefetch_queue_depth": 1, "exec_pipelined": False, "exec_async": False}
    pipeline = dali.Pipeline(batch_size=len(contents), num_threads=1, device_id=device_id, **synchronous)
    with pipeline:
        encoded = fn.external_source(lambda: arrays, dtype=types.UINT8, ndim=1)
        if size is None:
            images = fn.decoders.image(encoded, device=kind, jpeg_fancy_upsampling=True)
        else:
            left, top, side = central_square(width, height, None, 1)
            images = fn.decoders.image_slice(
                encoded, device=kind, start=(top, left), shape=(side, side), axes=(0, 1), jpeg_fancy_upsampling=True
            )
            interpolation = types.INTERP_NN if side == size else types.INTERP_CUBIC  # as the loader does
            images = fn.resize(images, size=(size, size), interp_type=interpolation, antialias=True)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline


def decode_whole(content: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        return np.array(image.convert("RGB"))


def to_host(images: Any) -> Images:
    return [np.array(image) for image in (images.as_cpu() if hasattr(images, "as_cpu") else images)]


def assert_alike(found: Images, expected: Images, device: torch.device) -> None:
    """The tests of the DALI loader say why this much."""
    mean, most = (0.5, 16) if device.type == "cpu" else (2, 48)
    for one, other in zip(found, expected, strict=True):
        off = np.abs(one.astype(int) - other)
        assert off.mean() <= mean and off.max() <= most


@pytest.mark.importance(1)
@pytest.mark.parametrize("name", WHOLE)
def test_read(benchmark: Suite, folders: Folders, name: str) -> None:
    """Through a data set, which lets nothing lead out of the folder, and as any program reads files."""
    dataset, watch = folders(*WHOLE[name][:2]), Stopwatch(torch.device("cpu"))
    paths = [Path(dataset.name, key) for key in dataset.keys[:BATCH]]
    assert all(path.read_bytes() == dataset.read(number) for number, path in enumerate(paths))

    def ours() -> Any:
        return [dataset.read(number) for number in range(BATCH)]

    def plain() -> Any:
        return [path.read_bytes() for path in paths]

    benchmark.compare(
        {OURS: Timed(watch.sampler(ours), OURS), "files": Timed(watch.sampler(plain))},
        name,
        operator="read",
        work={"images": BATCH},
    )


@pytest.mark.importance(3)
@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.quick) for name in WHOLE), *SIZES])
def test_decode(benchmark: Suite, folders: Folders, name: str) -> None:
    """DALI against Pillow, a core each; with resizing, and without."""
    width, height, size = {**WHOLE, **SIZES}[name]
    contents = [folders(width, height).read(number) for number in range(BATCH)]
    dali, watch = dali_pipeline(contents, benchmark.device, width, height, size), Stopwatch(torch.device("cpu"))
    decode_one = partial(decode, image_size=size) if size else decode_whole

    def pillow() -> Images:
        return [decode_one(content) for content in contents]

    assert_alike(to_host(dali.run()[0]), pillow(), benchmark.device)
    form = f"DALI {'mixed' if benchmark.on_cuda else 'cpu'}"
    benchmark.compare(
        {OURS: Timed(watch.sampler(dali.run), OURS, form), "Pillow": Timed(watch.sampler(pillow))},
        f"{name}, 1 core",
        operator="decode and resize" if size else "decode",
        work={"images": BATCH},
    )


@pytest.mark.importance(3)
@pytest.mark.parametrize("name", ["500x375 to 256", "256x256 to 64"])
def test_whole_loader(benchmark: Suite, folders: Folders, name: str) -> None:
    pytest.importorskip("nvidia.dali")
    width, height, size = SIZES[name]
    dataset, device = folders(width, height), benchmark.device
    names: tuple[LoaderName, ...] = ("dali", "pillow", "memory")
    with ExitStack() as stack:
        dali, pillow, memory = loaders = [
            stack.enter_context(open_one(kind, dataset, DataConfig(workers=WORKERS), BATCH, size, device))
            for kind in names
        ]
        first, *others = [next(loader) for loader in loaders]
        for other in others:
            assert torch.equal(first.samples, other.samples)
            assert_alike(list(first.images.cpu().numpy()), list(other.images.cpu().numpy()), device)
        steady = partial(steady_state, ahead=AHEAD["loader"], device=device)
        benchmark.compare(
            {
                OURS: Timed(steady(dali), OURS, "DALI"),
                "Pillow": Timed(steady(pillow)),
                "memory": Timed(steady(memory), "implementation"),
            },
            f"{name}, {WORKERS} cores",
            operator="whole loader",
            headline=name == "500x375 to 256",
            work={"images": BATCH},
        )


def open_one(
    name: LoaderName, dataset: Dataset, config: DataConfig, batch: int, size: int, device: torch.device
) -> Loader:
    sampler = BatchSampler(dataset.caption_table(), batch_size=batch, seed=0, flip=config.flip)
    return open_loader(dataset, sampler, config, image_size=size, name=name, device=device, progress=False)


def steady_state(
    source: Iterator[Any], *, ahead: int, device: torch.device, use: Callable[[Any], object] = lambda batch: None
) -> Sampler:
    """The time of a batch and its use, after those are gone that were made ahead while others had their turn."""
    watch = Stopwatch(device)

    def take(number: int) -> None:
        for batch in islice(source, number):
            use(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def sample(repeats: int) -> Sample:
        take(ahead)
        number = COUNTED * repeats
        return {"step": watch.sampler(partial(take, number))(1)["step"] / number}

    return sample


def step_inputs(loader: Loader, captions: int, config: Config, device: torch.device) -> Iterator[StepInputs]:
    """Inputs of steps with the loader's images."""
    noise_dim, draws = config.model.noise_dim, draws_per_image(config.loss.augment)
    features = random_features(captions)
    return iter(
        InputSource(loader, features, None, noise_dim=noise_dim, draws=draws, seed=0, first_step=0, device=device)
    )


@pytest.mark.importance(6)
@pytest.mark.parametrize("source", ["500x375", "256x256"])
def test_step(benchmark: Suite, folders: Folders, source: str) -> None:
    """The demo's step on a CPU, that of 256 px on a GPU: with each loader, and with tensors that are there already."""
    pytest.importorskip("nvidia.dali")
    device, name = benchmark.device, "256px" if benchmark.on_cuda else "demo"
    config = preset(name)
    size, batch = config.model.image_size, config.train.batch_size
    if not benchmark.on_cuda and source != "500x375":
        pytest.skip("the demo has images of one size")
    width, height = map(int, source.split("x"))
    dataset = folders(width, height) if benchmark.on_cuda else open_dataset("shapes", image_size=size)
    step, weight = make_step(config, device), torch.tensor(0.01, device=device)
    # The demo's images fit into memory, so that is what `auto` takes there.
    mine: LoaderName = "dali" if benchmark.on_cuda else "memory"
    others: list[LoaderName] = [kind for kind in ("pillow", "dali", "memory") if kind != mine]
    steps = partial(
        steady_state,
        ahead=AHEAD["step"],
        device=device,
        use=lambda inputs: step(inputs, weight, with_penalty=False),
    )
    with ExitStack() as stack:

        def open_inputs(kind: LoaderName) -> Iterator[StepInputs]:
            loader = stack.enter_context(open_one(kind, dataset, config.data, batch, size, device))
            return step_inputs(loader, len(dataset.caption_table().captions), config, device)

        candidates = {OURS: Timed(steps(open_inputs(mine)), OURS, mine)}
        candidates["cached tensors"] = Timed(steps(cycle(list(islice(open_inputs("memory"), 8)))))
        candidates |= {kind: Timed(steps(open_inputs(kind)), "implementation", kind) for kind in others}
        benchmark.compare(
            candidates, f"{name}, {source}, batch {batch}", operator="step with loader", work={"images": batch}
        )
