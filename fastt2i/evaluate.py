"""`python -m fastt2i.evaluate`: score a trained model on captioned images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import tyro

from fastt2i.cli import from_home, plain_warnings, run
from fastt2i.config import DataFormat
from fastt2i.devices.free_memory import check_memory
from fastt2i.engine.distributed.rendezvous import join
from fastt2i.engine.distributed.world import World
from fastt2i.engine.scoring.choices import EXTRACTED, Metric, Negatives, Protocol, needs_extractor
from fastt2i.errors import UserError
from fastt2i.files.atomic import write_output
from fastt2i.files.io_errors import writing

if TYPE_CHECKING:
    from fastt2i.data.dataset import Dataset
    from fastt2i.engine.scoring.model_evaluation import Evaluation, Result
    from fastt2i.metrics.distances import Statistics

METRICS: tuple[Metric, ...] = get_args(Metric)
#: Real images without which KID, precision, recall and retrieval say nothing.
FEWEST_IMAGES = 4
#: Of an image, at least: those of the smallest extractor, in float32, a file's and all together.
FEATURE_BYTES = 2 * 4 * 1280


@dataclass(kw_only=True)
class Arguments:
    """Score a trained model: how good are its images, and how well do they follow captions?"""

    model: Path
    """Model folder, or the run directory that holds one."""
    data: str = "shapes"
    """Captioned images, as for training."""
    format: DataFormat = "auto"
    """What the data is, as for training."""
    text_column: str = ""
    """Column or field that holds the captions, as for training."""
    split: Literal["heldout", "train", "all"] = "heldout"
    """Which part of the data: what training never saw, what it saw, or everything."""
    metrics: str = ""
    """Figures, with commas between them: fid, kid, pr (precision and recall), retrieval, clip, r-precision, spread,
    attributes. By default all that can be computed with what is installed and given."""
    images: int | None = None
    """Images to draw; one for each sample by default, up to 1,000. Of samples, as many at most are compared with."""
    extractor: str = "efficientnet-lite0"
    """Network of KID, precision, recall and retrieval: `efficientnet-lite0`, or a file with weights of Inception v3."""
    inception: Path | None = None
    """Weights of Inception v3, for FID: torch-fidelity's file, or torchvision's for the protocol df-gan."""
    statistics: Path | None = None
    """Mean and covariance of real images' features (.npz with mu and sigma), which FID compares with instead of the
    data's images."""
    clip: Path | None = None
    """Directory with a CLIP model, for the CLIP score."""
    protocol: Protocol = "default"
    """Whose conventions: docs/evaluation.md lists them."""
    negatives: Negatives = "any"
    """Which other captions R-precision chooses from: any, or those of images of other classes."""
    candidates: int = 100
    """Captions that R-precision chooses from."""
    truncation: float = 1.0
    """Factor of the noise."""
    seed: int = 0
    """Seed of the noise, of the subsets and of the candidates."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    json: Path | None = None
    """Also write scores and protocol to this JSON file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate; returns the exit status."""
    arguments = from_home(tyro.cli(Arguments, args=argv, prog="fastt2i evaluate"), "data", "extractor")
    _check(arguments)
    with join() as world:
        return _main(arguments, world)


def _check(arguments: Arguments) -> None:
    for name, value in (("images", arguments.images), ("candidates", arguments.candidates)):
        if value is not None and value < 2:
            raise UserError(f"--{name} is {value}; it must be 2 or more")
    check_memory(
        (arguments.images or 0) * FEATURE_BYTES, f"--images is {arguments.images}: their features", "draw fewer"
    )
    if not 0 <= arguments.truncation <= 2:
        raise UserError(f"--truncation is {arguments.truncation}; it must be between 0 and 2")
    asked = _asked(arguments)
    if unknown := [name for name in asked if name not in METRICS]:
        raise UserError(f"--metrics has {unknown[0]!r}; there are {', '.join(METRICS)}")
    for metric, option, given in (
        ("fid", "--inception FILE", arguments.inception),
        ("clip", "--clip DIR", arguments.clip),
    ):
        if metric in asked and given is None:
            raise UserError(f"--metrics has {metric}, which needs {option}")
    if arguments.statistics and not arguments.inception:
        raise UserError("--statistics is what FID compares with, which needs --inception FILE too")
    if arguments.protocol == "df-gan":
        if arguments.inception is None:
            raise UserError("--protocol df-gan is about FID: give its weights, torchvision's, with --inception FILE")
        if arguments.truncation != 1.0:
            raise UserError("--protocol df-gan has a truncation of its own; leave --truncation out")


def _asked(arguments: Arguments) -> list[str]:
    return [name.strip() for name in arguments.metrics.split(",") if name.strip()]


def _main(arguments: Arguments, world: World) -> int:
    from fastt2i.devices.allocator import keep_freed_memory
    from fastt2i.devices.defaults import torch_defaults
    from fastt2i.engine.scoring.report import explain

    plain_warnings(shown=world.local_rank == 0)
    keep_freed_memory()
    with torch_defaults():
        result = _prepare(arguments, world).run(world)
    if result is None:
        return 0
    # The file first: whoever reads what is printed may have gone. What cannot be written is printed all the same.
    try:
        if arguments.json:
            _write_json(result, arguments.json, arguments.split)
    finally:
        print(explain(result))
    return 0


def _write_json(result: Result, path: Path, split: str) -> None:
    content: dict[str, Any] = {"scores": result.scores, "protocol": result.protocol | {"split": split}}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_output(path, (json.dumps(content, indent=1) + "\n").encode())


def _prepare(arguments: Arguments, world: World) -> Evaluation:
    """Everything that an evaluation needs, found and checked."""
    from fastt2i.devices.selection import choose_device
    from fastt2i.engine.scoring.model_evaluation import Evaluation, warn_of_clip
    from fastt2i.engine.scoring.plan import make_plan
    from fastt2i.engine.scoring.scores import RPrecision
    from fastt2i.files.user_cache import user_cache
    from fastt2i.metrics.clip import ClipScorer
    from fastt2i.metrics.extractors import open_extractor
    from fastt2i.metrics.spread import real_distance
    from fastt2i.models.pretrained import load_pretrained

    with world.raise_together():
        device = choose_device(arguments.device, world.local_rank if world.size > 1 else None)
        model = load_pretrained(arguments.model)
        encoder = model.load_text_encoder(device)
        whole, dataset = _open_data(arguments, model.config.image_size, model.facts.get("heldout"))
        plan = make_plan(
            dataset,
            protocol=arguments.protocol,
            images=arguments.images,
            seed=arguments.seed,
            truncation=arguments.truncation,
        )
        _tell_of_rounds(arguments, len(dataset), world)
        # DF-GAN compares with all images of the set; the statistics given stand for them.
        real_count = len(dataset) if arguments.protocol == "df-gan" else min(len(dataset), len(plan))
        metrics = _choose_metrics(arguments, real_count, len(set(plan.captions)), world)
        inception = open_extractor(arguments.inception, device) if arguments.inception else None
        evaluation = Evaluation(
            model=model,
            encoder=encoder,
            dataset=dataset,
            plan=plan,
            metrics=metrics,
            device=device,
            directory=user_cache("evaluation"),
            real_count=real_count,
            extractor=open_extractor(arguments.extractor, device) if needs_extractor(metrics) else None,
            inception=inception,
            reference=_read_statistics(arguments.statistics, inception.num_features) if inception else None,
            clip=ClipScorer(arguments.clip, device) if arguments.clip and "clip" in metrics else None,
            real_distance=real_distance(whole, model.config.image_size) if "spread" in metrics else None,
            r_precision=RPrecision(candidates=arguments.candidates, negatives=arguments.negatives, seed=arguments.seed),
        )
        if "attributes" in _asked(arguments) and not evaluation.has_attributes:
            raise UserError("--metrics has attributes, which only captions of the embedded shapes have")
        if evaluation.clip:
            warn_of_clip(evaluation.clip, encoder)
        return evaluation


def _open_data(arguments: Arguments, image_size: int, heldout: float | None) -> tuple[Dataset, Dataset]:
    """The whole set, and the part to score in a shuffled order.

    heldout: the training's share of samples that are held out, which decides which they are.
    """
    from fastt2i.config import DataConfig
    from fastt2i.data.open import open_dataset
    from fastt2i.engine.scoring.plan import shuffled

    whole = open_dataset(
        arguments.data,
        arguments.format,
        image_size=image_size,
        split="all",
        heldout=float(DataConfig().heldout if heldout is None else heldout),
        text_column=arguments.text_column,
    )
    dataset = whole.split(arguments.split)
    if not len(dataset):
        raise UserError(f"nothing of {arguments.data} is held out; score what training saw with --split train")
    return whole, shuffled(dataset)


def _tell_of_rounds(arguments: Arguments, samples: int, world: World) -> None:
    if arguments.images is not None and arguments.images > samples:
        world.print_rank0(
            f"--images is {arguments.images:,} and there are {samples:,} samples: their captions are drawn in turn, "
            f"with other noise; the real images are {samples:,}, and retrieval is of the first {samples:,} images"
        )


def _choose_metrics(arguments: Arguments, real_images: int, captions: int, world: World) -> list[Metric]:
    """What was asked for; else all that can be computed, and a line for each that cannot."""
    from importlib.util import find_spec

    from fastt2i.metrics.efficientnet_lite import PACKAGE

    asked = _asked(arguments)
    if asked:
        return [name for name in METRICS if name in asked]
    lacking: dict[Metric, str] = {}
    packages = ("torchmetrics", *([PACKAGE] if arguments.extractor == "efficientnet-lite0" else []))
    if any(find_spec(package) is None for package in packages):
        lacking |= dict.fromkeys(EXTRACTED, 'pip install "fastt2i[eval]" brings what it needs')
    elif real_images < FEWEST_IMAGES:
        lacking |= dict.fromkeys(EXTRACTED, f"it needs {FEWEST_IMAGES} real images or more, not {real_images}")
    if captions < 2:
        lacking["r-precision"] = "all captions are the same"
    for name, reason in lacking.items():
        world.print_rank0(f"{name} is left out: {reason}")
    files = {"fid": arguments.inception, "clip": arguments.clip}
    return [name for name in METRICS if name not in lacking and files.get(name, Path()) is not None]


def _read_statistics(path: Path | None, num_features: int) -> Statistics | None:
    """Means and covariances from a `.npz`; nothing in it is executed."""
    if path is None:
        return None
    import zipfile

    import numpy as np

    from fastt2i.metrics.distances import load_statistics

    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in ("mu", "sigma") if name in file}
    except OSError as error:
        raise UserError(f"cannot read the statistics {path}: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UserError(f"{path} is no .npz with the arrays mu and sigma") from error
    return load_statistics(content, str(path), num_features)


if __name__ == "__main__":
    sys.exit(run(main))
