"""Learning beside a peer: the engine, and DF-GAN's networks and step, from the same images and captions.

Both get batches from the engine's loader with its text features, and are scored alike, on held-out captions: by the
attributes of the embedded shapes, or, for a set of `--learning-data`, by a network that neither was trained with. They
take turns until each has trained for the minutes of `--learning`, so that a machine's slower minutes are shared; the
clock of each has its own steps alone, with what it waits for its batches. Curves over the clock and over images are in
`learning.png`, and the points in `learning.json`, beside the file of `--benchmark-json`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from benchmarks.cases.baselines import dfgan
from benchmarks.harness.result import OURS, Candidate, Case
from benchmarks.harness.suite import Suite
from benchmarks.harness.timing import Sample, milliseconds, ratios
from fastt2i.config import Config
from fastt2i.engine.augment import draws_per_image
from fastt2i.engine.build import build_trainer
from fastt2i.engine.distributed.world import World
from fastt2i.engine.ema import Ema
from fastt2i.engine.evaluation import CaptionSet
from fastt2i.engine.inputs import InputSource
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.engine.precision import Precision
from fastt2i.engine.scoring.feature_pass import DrawnImages, RealImages, read_images
from fastt2i.engine.scoring.feature_store import FeatureStore
from fastt2i.engine.scoring.plan import make_plan, shuffled
from fastt2i.engine.scoring.scores import Features, extractor_reader, kid_scores, retrieval_scores
from fastt2i.engine.step import StepInputs
from fastt2i.engine.trainer import Trainer
from fastt2i.metrics.extractors import EFFICIENTNET_LITE0, open_extractor
from fastt2i.pictures.pixels import to_signed
from fastt2i.presets import preset

PEER = "DF-GAN"
#: Turns that each takes, and so points of its curves.
TURNS = 12
#: Of the moving average of DF-GAN's weights, which its published code evaluates.
DF_GAN_EMA = 0.999
#: What may be in the picture, where it is known of a set.
SCORES = {
    "accuracy_all": "held-out captions with all attributes right",
    "spread_of_real": "spread of images of one caption, of that of real ones",
    "kid": "KID (EfficientNet-Lite0) on held-out captions",
    "retrieval_r10": "own image among the ten nearest",
}


@dataclass(frozen=True)
class Point:
    """Of a curve: seconds and images of training until then, and scores."""

    seconds: float
    images: int
    scores: dict[str, float]


@dataclass
class Learner:
    """What learns.

    Attributes:
        take: takes a step, given its inputs and its number.
        inputs: of all steps.
        score: of what has been learned.
        seconds: that its steps have taken.
        samples: seconds of a step, with its batch, in each turn.
    """

    take: Callable[[StepInputs, int], object]
    inputs: Iterator[StepInputs]
    score: Callable[[], dict[str, float]]
    batch: int
    steps: int = 0
    seconds: float = 0.0
    curve: list[Point] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def learn(self, seconds: float) -> None:
        """Take steps for so long, and one at least; then add a point to the curve."""
        began = now = time.perf_counter()
        first = self.steps
        while self.steps == first or now - began < seconds:
            self.take(next(self.inputs), self.steps)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.steps += 1
            now = time.perf_counter()
        self.seconds += now - began
        self.samples.append({"step": (now - began) / (self.steps - first)})
        self.curve.append(Point(round(self.seconds, 2), self.steps * self.batch, self.score()))


class DFGAN(nn.Module):
    """DF-GAN's step on the engine's inputs, and its averaged generator with the signature of the engine's."""

    noise_dim = dfgan.NOISE

    def __init__(self, size: int, sentence: int, device: torch.device) -> None:
        super().__init__()
        self._step = dfgan.Step(size, device, sentence)
        self._average = Ema(self._step.generator, DF_GAN_EMA)

    def take(self, inputs: StepInputs, step: int) -> None:
        self._step(to_signed(inputs.images), inputs.text.sentence.float(), inputs.noise)
        self._average.update(torch.tensor(self._average.weight(step), device=inputs.noise.device))

    def forward(self, sentence: Tensor, noise: Tensor) -> SimpleNamespace:
        return SimpleNamespace(images=self._average.module(noise, sentence.float()))


class RealSamples:
    """The held-out samples of a run, which images of any generator of their captions are compared with."""

    def __init__(self, trainer: Trainer) -> None:
        data, size = trainer.data, trainer.config.model.image_size
        self._dataset = shuffled(data.scored)
        self._plan = make_plan(self._dataset, images=None, seed=trainer.config.train.seed)
        self._extractor = open_extractor(EFFICIENTNET_LITE0, trainer.device)
        self._drawn = partial(
            DrawnImages, self._plan, encoder=data.encoder, image_size=size, model_digest="", device=trainer.device
        )
        self._real = self._features(RealImages(self._dataset, size, min(len(self._dataset), len(self._plan))))

    def scores(self, generator: nn.Module) -> dict[str, float]:
        """KID and retrieval, as `fastt2i.evaluate` has them."""
        drawn = self._features(self._drawn(generator=generator))
        kid, _ = kid_scores(Features(self._real[~self._real.isnan().any(1)], drawn), self._plan.seed)
        return kid | retrieval_scores(self._real, drawn)

    def _features(self, source: RealImages | DrawnImages) -> Tensor:
        reader = extractor_reader(self._extractor)
        with TemporaryDirectory() as folder:
            store = FeatureStore(Path(folder), "", len(source))
            read_images(source, [reader], store, World(), description="images")
            return store.load(reader.name)


def learners(config: Config, trainer: Trainer, stack: ExitStack) -> dict[str, Learner]:
    """The engine's run, and DF-GAN on its data."""
    data, device, size = trainer.data, trainer.device, config.model.image_size
    peer = DFGAN(size, data.features.sentences(torch.zeros(1, dtype=torch.int64)).shape[1], device)

    def inputs(noise_dim: int) -> Iterator[StepInputs]:
        assert trainer.progress.loader
        loader = stack.enter_context(closing(data.open_loader(trainer.progress.loader, 0, [])))
        draws = draws_per_image(config.loss.augment)
        random = {"noise_dim": noise_dim, "draws": draws, "seed": config.train.seed}
        return iter(InputSource(loader, data.features, data.index.classes, first_step=0, device=device, **random))

    real = None if config.data.path == "shapes" else RealSamples(trainer)

    def score(captions: CaptionSet, generator: nn.Module, precision: Precision) -> dict[str, float]:
        with precision.in_force():
            found = real.scores(generator) if real else captions.accuracy(captions.draw(generator))
            return found | captions.spread(generator)

    batch, own = config.train.batch_size, trainer.state.ema.module
    scores = partial(score, trainer.captions, own, trainer.precision)
    captions = data.caption_set(dfgan.NOISE, data.real_distance())
    peer_scores = partial(score, captions, peer, Precision("fp32", device))
    return {
        OURS: Learner(trainer.runner, inputs(own.noise_dim), scores, batch),
        PEER: Learner(peer.take, inputs(dfgan.NOISE), peer_scores, batch),
    }


def learn_in_turns(config: Config, minutes: float, folder: Path) -> dict[str, Learner]:
    """Train both for so many minutes each; folder: of the engine's run."""
    directory = RunDirectory(folder)
    directory.prepare()
    trainer = build_trainer(config, directory)
    with ExitStack() as stack:
        found = learners(config, trainer, stack)
        while unfinished := {name: learner for name, learner in found.items() if learner.seconds < 60 * minutes}:
            for name, learner in unfinished.items():
                learner.learn(min(60 * minutes / TURNS, 60 * minutes - learner.seconds))
                print(name, learner.curve[-1], flush=True)
    return found


def save_picture(curves: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Each score over the clock and over images."""
    from matplotlib.figure import Figure

    scored = {score for curve in curves.values() for point in curve for score in point.scores}
    known = {score: what for score, what in SCORES.items() if score in scored}
    figure = Figure(figsize=(11, 3.5 * len(known)), layout="constrained")
    for row, (score, what) in zip(figure.subplots(len(known), 2, squeeze=False), known.items(), strict=True):
        for axes, place in zip(row, ("seconds", "images"), strict=True):
            axes.set(xlabel=f"{place} of training", ylabel=what)
            axes.grid(alpha=0.3)
            for name, curve in curves.items():
                axes.plot([getattr(p, place) for p in curve], [p.scores[score] for p in curve], ".-", label=name)
            axes.legend()
    figure.savefig(path, dpi=110)


@pytest.mark.slow
def test_learning_against_df_gan(benchmark: Suite, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    data, minutes = pytestconfig.getoption("learning_data"), pytestconfig.getoption("learning")
    name = "64px" if data else "demo"
    config = preset(name)
    config.data = replace(config.data, path=data or config.data.path)
    config.engine = replace(config.engine, compile="off")  # compiling takes a large part of such short minutes
    found = learn_in_turns(config, minutes, tmp_path / "run")
    out = Path(pytestconfig.getoption("benchmark_json") or tmp_path / "result.json").parent
    curves = {name: learner.curve for name, learner in found.items()}
    told = {name: [asdict(point) for point in curve] for name, curve in curves.items()}
    (out / "learning.json").write_text(json.dumps(told, indent=1) + "\n")
    save_picture(curves, out / "learning.png")
    turns = min(len(learner.samples) for learner in found.values())
    ours, theirs = (learner.samples[:turns] for learner in found.values())
    benchmark.cases.append(
        Case(
            operator="training step, learning",
            case=f"{name}, batch {config.train.batch_size}, {minutes:g} minutes",
            direction="step",
            candidates={
                OURS: Candidate("ours", milliseconds(ours), rounds=turns),
                PEER: Candidate("alternative", milliseconds(theirs), rounds=turns),
            },
            ratios={PEER: ratios(theirs, ours)},
            work={"images": config.train.batch_size},
        )
    )
