"""An evaluation of a model from end to end: features of real and drawn images, figures, and how they were computed."""

from __future__ import annotations

import importlib.metadata
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastt2i
from fastt2i.data.dataset import Dataset
from fastt2i.devices.capabilities import processor
from fastt2i.engine.distributed.world import World
from fastt2i.engine.evaluation import SPREAD_CAPTIONS, CaptionSet
from fastt2i.engine.scoring.choices import Metric, needs_extractor
from fastt2i.engine.scoring.feature_pass import DrawnImages, Reader, RealImages, read_images
from fastt2i.engine.scoring.feature_store import FeatureStore
from fastt2i.engine.scoring.plan import Plan
from fastt2i.engine.scoring.scores import (
    Features,
    RPrecision,
    attribute_reader,
    attribute_scores,
    clip_reader,
    clip_scores,
    discriminator_reader,
    extractor_reader,
    frechet_scores,
    kid_scores,
    precision_recall_scores,
    retrieval_scores,
)
from fastt2i.errors import UserError
from fastt2i.files.tensors import tensors_digest
from fastt2i.metrics.clip import ClipScorer
from fastt2i.metrics.distances import KID_SUBSETS, NEIGHBOUR, Statistics
from fastt2i.metrics.extractors import Extractor
from fastt2i.models.pretrained import PretrainedModel
from fastt2i.text.encoder import TextEncoder


class Result(NamedTuple):
    """Figures by name, and everything that has to be the same for figures to be comparable."""

    scores: dict[str, float]
    protocol: dict[str, Any]


@dataclass(kw_only=True)
class Evaluation:
    """What is scored, and by what.

    Attributes:
        model: the trained model.
        encoder: its language model.
        dataset: the samples whose captions are drawn, and whose images are the real ones.
        plan: what is drawn.
        metrics: what is computed.
        device: where networks run.
        directory: where features are kept.
        real_count: real images, the first ones of the dataset.
        real_distance: mean absolute difference of two real images of one caption, in [-1, 1]; None if none are known.
        extractor: for KID, precision, recall and retrieval.
        inception: for FID.
        reference: what FID compares with, in place of the real images.
        clip: for the CLIP score.
        r_precision: how that is computed.
    """

    model: PretrainedModel
    encoder: TextEncoder
    dataset: Dataset
    plan: Plan
    metrics: Sequence[Metric]
    device: torch.device
    directory: Path
    real_count: int
    real_distance: float | None = None
    extractor: Extractor | None = None
    inception: Extractor | None = None
    reference: Statistics | None = None
    clip: ClipScorer | None = None
    r_precision: RPrecision = field(default_factory=RPrecision)
    _discriminator_digest: str = field(init=False, default="")

    def run(self, world: World) -> Result | None:
        """Score the model; on ranks other than 0 there is no result.

        Raises:
            UserError: there is too little to score, or features cannot be kept.
        """
        self.model.generator.to(self.device)
        self.model.discriminator.to(self.device)
        drawn, real = self._drawn, self._real
        # Files' times and the last bits of weights may differ on other machines, and names of files must not.
        drawn.key, real.key, self._discriminator_digest = world.run_on_rank0(
            lambda: (drawn.key, real.key, tensors_digest(self.model.discriminator.state_dict()))
        )
        read_images(real, self._real_readers(), self._store(real), world, description="real images")
        read_images(drawn, self._drawn_readers(drawn), self._store(drawn), world, description="drawn images")
        result = world.run_on_rank0(self._result)
        if not world.is_first:
            return None
        self._store(drawn).remove()
        # What networks of features say of real images serves the next model, too; what is this model's own does not.
        kept = {extractor_reader(network).name for network in (self.extractor, self.inception) if network}
        for reader in self._real_readers():
            if reader.name not in kept:
                self._store(real).remove(reader.name)
        return result

    @cached_property
    def _drawn(self) -> DrawnImages:
        return DrawnImages(
            self.plan,
            self.model.generator,
            self.encoder,
            image_size=self.model.config.image_size,
            model_digest=self.model.digest,
            device=self.device,
        )

    @cached_property
    def _real(self) -> RealImages:
        return RealImages(self.dataset, self.model.config.image_size, self.real_count)

    def _store(self, source: DrawnImages | RealImages) -> FeatureStore:
        return FeatureStore(self.directory, source.key, len(source))

    @cached_property
    def _discriminator(self) -> Reader:
        return discriminator_reader(self.model.discriminator, self._discriminator_digest, self.device)

    @cached_property
    def _attributes(self) -> Reader | None:
        return attribute_reader(self.plan)

    @property
    def has_attributes(self) -> bool:
        """Whether all captions describe the embedded shapes."""
        return self._attributes is not None

    def _networks(self, *, of_real: bool) -> list[Reader]:
        """What reads real and drawn images alike; what FID compares with may be given in place of real images."""
        wants_inception = "fid" in self.metrics and not (of_real and self.reference)
        pairs = ((self.extractor, needs_extractor(self.metrics)), (self.inception, wants_inception))
        found = [extractor for extractor, wanted in pairs if extractor and wanted]
        readers = {extractor.digest: extractor_reader(extractor) for extractor in found}
        extra = [self._discriminator] if "r-precision" in self.metrics else []
        return [*readers.values(), *extra]

    def _real_readers(self) -> list[Reader]:
        if "clip" in self.metrics and self.clip is not None:
            return [*self._networks(of_real=True), self._clip_of_real(self.clip)]
        return self._networks(of_real=True)

    def _clip_of_real(self, scorer: ClipScorer) -> Reader:
        # Captions are the plan's, so that other plans must not take these cosines for theirs.
        reader = clip_reader(scorer, self.plan)
        return Reader(f"{reader.name}-{self._drawn.key[:8]}", reader.read)

    def _drawn_readers(self, drawn: DrawnImages) -> list[Reader]:
        readers = self._networks(of_real=False)
        if "r-precision" in self.metrics:
            readers.append(self._sentences(drawn))
        if "clip" in self.metrics and self.clip is not None:
            readers.append(clip_reader(self.clip, self.plan))
        if "attributes" in self.metrics and self._attributes is not None:
            readers.append(self._attributes)
        return readers

    def _sentences(self, drawn: DrawnImages) -> Reader:
        """Projected sentence features of the images' captions."""

        @torch.inference_mode()
        def read(_: Tensor, numbers: Sequence[int]) -> Tensor:
            return self.model.discriminator.sentence(drawn.sentences(numbers))

        return Reader(f"sentences-{self._discriminator.name.removeprefix('global-')}", read)

    def _result(self) -> Result:
        real_store, drawn_store = self._store(self._real), self._store(self._drawn)
        real: dict[str, Tensor] = {r.name: real_store.load(r.name) for r in self._real_readers()}
        drawn = {r.name: drawn_store.load(r.name) for r in self._drawn_readers(self._drawn)}
        there = next((~rows.isnan().any(1) for rows in real.values()), torch.zeros(0, dtype=torch.bool))
        if len(there) and not there.any():
            raise UserError(f"no image of {self.dataset.name} can be decoded, so there is nothing to score")
        protocol = self._protocol(decoded=int(there.sum()), undecodable=int((~there).sum()))
        scores: dict[str, float] = {}
        if self.inception and "fid" in self.metrics:
            name = extractor_reader(self.inception).name
            reference = real[name][there] if self.reference is None else self.reference
            scores |= frechet_scores(reference, drawn[name], self.inception)
        if self.extractor and needs_extractor(self.metrics):
            name = extractor_reader(self.extractor).name
            features = Features(real[name][there], drawn[name])
            if "kid" in self.metrics:
                values, protocol["kid_subset_size"] = kid_scores(features, self.plan.seed)
                scores |= values
            if "pr" in self.metrics:
                scores |= precision_recall_scores(features)
            if "retrieval" in self.metrics:
                scores |= retrieval_scores(real[name], drawn[name])
        if self.clip and "clip" in self.metrics:
            name = clip_reader(self.clip, self.plan).name
            scores |= clip_scores(real[self._clip_of_real(self.clip).name][there], drawn[name])
        if "r-precision" in self.metrics:
            texts = drawn[self._sentences(self._drawn).name]
            name = self._discriminator.name
            scores |= self.r_precision.scores(self.plan, real[name], drawn[name], texts)
        if "spread" in self.metrics:
            scores |= self._spread()
        if self._attributes is not None and "attributes" in self.metrics:
            scores |= attribute_scores(drawn["attributes"])
        return Result(scores, protocol)

    def _spread(self) -> dict[str, float]:
        captions = list(dict.fromkeys(self.plan.captions))[:SPREAD_CAPTIONS]
        texts = CaptionSet(
            captions,
            self.encoder(captions),
            noise_dim=self.model.generator.noise_dim,
            seed=self.plan.seed,
            device=self.device,
            real_distance=self.real_distance,
        )
        return texts.spread(self.model.generator)

    def _protocol(self, *, decoded: int, undecodable: int) -> dict[str, Any]:
        """What was done, in plain values; what was not done is left out."""
        plan, extractor, inception = self.plan, self.extractor, self.inception
        facts: dict[str, Any] = {
            "protocol": plan.protocol,
            "data": self.dataset.name,
            "images": len(plan),
            "real_images": decoded,
            "undecodable_images": undecodable,
            "different_captions": len(set(plan.captions)),
            "seed": plan.seed,
            "truncation": plan.truncation,
            "noise_cut": plan.cut,
            "image_size": self.model.config.image_size,
            "image_dtype": "uint8" if plan.rounded else "float32",
            "real_images_resize": "central square, antialiased bicubic, uint8",
            "model": self.model.digest,
            "language_model": self.encoder.digest,
        }
        if extractor and needs_extractor(self.metrics):
            facts |= {"extractor": extractor.name, "extractor_sha256": extractor.digest}
            facts |= {"extractor_resize": extractor.resize, "kid_subsets": KID_SUBSETS, "neighbour": NEIGHBOUR}
        if inception and "fid" in self.metrics:
            facts |= {"inception": inception.name, "inception_sha256": inception.digest}
            facts |= {"inception_resize": inception.resize, "reference": "statistics" if self.reference else "images"}
        if self.clip and "clip" in self.metrics:
            facts |= {"clip_sha256": self.clip.digest}
        if "r-precision" in self.metrics:
            facts |= {"candidates": self.r_precision.candidates, "negatives": self.r_precision.negatives}
            facts |= {"discriminator": self._discriminator.name.removeprefix("global-")}
        return facts | {"device": _device_name(self.device), "versions": _versions()}


def warn_of_clip(clip: ClipScorer, encoder: TextEncoder) -> None:
    """Say so where a model is scored by what it was trained with."""
    if clip.digest == encoder.digest:
        warnings.warn(
            "the CLIP score is by the very CLIP model that read the captions in training: it is no independent figure",
            stacklevel=2,
        )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def _versions() -> dict[str, str]:
    versions = {"fastt2i": fastt2i.__version__, "python": platform.python_version(), "torch": torch.__version__}
    for name in ("torchmetrics", "transformers", "pillow"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
