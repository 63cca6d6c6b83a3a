"""Whole loaders, on one core and on two, and what a loader costs a training step: DALI and Pillow side by side.

All candidates of a case have the same files, the same filter and the same output, compared before anything is timed.
Ours is DALI; which of the two trains is decided by `--data.loader auto` on the machine at hand. A time is that of a
batch of 32, in the last cases of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases.training_step import make_step, random_features
from benchmarks.harness.result import OURS
from benchmarks.harness.suite import Suite, Timed
from benchmarks.harness.timing import Sample, Sampler
from fastt2i.config import DataConfig
from fastt2i.data.dataset import Dataset
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

Folders = Callable[[int, int], Dataset]

BATCH, IMAGES = 32, 128
#: Widths and heights of photographs, and the sizes to which loaders bring them.
SIZES = {"500x375 to 256": (500, 375, 256), "256x256 to 256": (256, 256, 256), "256x256 to 64": (256, 256, 64)}
#: Batches that use up what a loader has made ahead, and that are timed then: of whole loaders, and in steps.
AHEAD, COUNTED = {"loader": 5, "step": 2}, 4
#: What DALI may be off from Pillow, as a mean and at most; the tests of its loader say why this much.
OFF = {"cpu": (0.5, 16), "cuda": (2, 48)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """folders(width, height): JPEGs on disk."""

    @cache
    def make(width: int, height: int) -> Dataset:
        folder = tmp_path_factory.mktemp(f"{width}x{height}")
        source = photographs_dataset(IMAGES, width, height)
        for number in range(IMAGES):
            Path(folder, f"{number}.jpg").write_bytes(source.read(number))
            Path(folder, f"{number}.txt").write_text(f"photograph {number}")
        return folder_dataset(str(folder), "all")

    return make


@pytest.mark.importance(3)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", [pytest.param("500x375 to 256", marks=pytest.mark.quick), *list(SIZES)[1:]])
def test_whole_loader(benchmark: Suite, folders: Folders, name: str, workers: int) -> None:
    pytest.importorskip("nvidia.dali")
    width, height, size = SIZES[name]
    dataset, device = folders(width, height), benchmark.device
    names: tuple[LoaderName, ...] = ("dali", "pillow", "memory")
    with ExitStack() as stack:
        dali, pillow, memory = loaders = [
            stack.enter_context(open_one(kind, dataset, DataConfig(workers=workers), BATCH, size, device))
            for kind in names
        ]
        first, *others = [next(loader) for loader in loaders]
        for other in others:
            assert torch.equal(first.samples, other.samples)
            off = (first.images.cpu().int() - other.images.cpu().int()).abs().flatten(1)
            mean, most = OFF[device.type]
            assert off.float().mean(dim=1).max() <= mean and off.max() <= most
        steady = partial(steady_state, benchmark, ahead=AHEAD["loader"])
        benchmark.compare(
            {
                OURS: Timed(steady(dali), form="DALI"),
                "Pillow": Timed(steady(pillow)),
                "memory": Timed(steady(memory), "implementation"),
            },
            f"{name}, {workers} core{'s' * (workers > 1)}",
            operator="whole loader",
            headline=(name, workers) == ("500x375 to 256", 2),
            work={"images": BATCH},
        )


def open_one(
    name: LoaderName, dataset: Dataset, config: DataConfig, batch: int, size: int, device: torch.device
) -> Loader:
    sampler = BatchSampler(dataset.caption_table(), batch_size=batch, seed=0, flip=config.flip)
    return open_loader(dataset, sampler, config, image_size=size, name=name, device=device, progress=False)


def steady_state(
    suite: Suite, source: Iterator[Any], *, ahead: int, use: Callable[[Any], object] = lambda batch: None
) -> Sampler:
    """The time of a batch and its use, after those are gone that were made ahead while others had their turn."""

    def take(number: int) -> None:
        for batch in islice(source, number):
            use(batch)
        if suite.on_cuda:
            torch.cuda.synchronize()

    def sample(repeats: int) -> Sample:
        take(ahead)
        number = COUNTED * repeats
        return {"step": suite.watch.sampler(partial(take, number))(1)["step"] / number}

    return sample


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
    random = {"noise_dim": config.model.noise_dim, "draws": draws_per_image(config.loss.augment)}
    steps = partial(
        steady_state, benchmark, ahead=AHEAD["step"], use=lambda inputs: step(inputs, weight, with_penalty=False)
    )
    with ExitStack() as stack:

        def open_inputs(kind: LoaderName) -> Iterator[StepInputs]:
            loader = stack.enter_context(open_one(kind, dataset, config.data, batch, size, device))
            features = random_features(len(dataset.caption_table().captions))
            return iter(InputSource(loader, features, None, seed=0, first_step=0, device=device, **random))

        candidates = {OURS: Timed(steps(open_inputs(mine)), form=mine)}
        candidates["cached tensors"] = Timed(steps(cycle(list(islice(open_inputs("memory"), 8)))))
        candidates |= {kind: Timed(steps(open_inputs(kind)), "implementation", kind) for kind in others}
        benchmark.compare(
            candidates, f"{name}, {source}, batch {batch}", operator="step with loader", work={"images": batch}
        )
