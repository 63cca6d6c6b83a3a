"""Figures from features: which there are, what each needs, and how it is computed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastt2i.data.shapes import parse_caption
from fastt2i.engine.scoring.choices import Negatives
from fastt2i.engine.scoring.feature_pass import Reader
from fastt2i.engine.scoring.plan import Plan
from fastt2i.errors import UserError
from fastt2i.metrics.attributes import attribute_shares, right_attributes
from fastt2i.metrics.clip import ClipScorer, clip_score
from fastt2i.metrics.distances import (
    FEW_FOR_FRECHET,
    Statistics,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from fastt2i.metrics.extractors import Extractor
from fastt2i.metrics.r_precision import r_precision
from fastt2i.metrics.retrieval import retrieval_ranks
from fastt2i.models.discriminator import Discriminator


def extractor_reader(extractor: Extractor) -> Reader:
    """Features of an extractor."""
    return Reader(f"features-{extractor.digest[:16]}", lambda levels, _: extractor(levels))


def discriminator_reader(discriminator: Discriminator, digest: str, device: torch.device) -> Reader:
    """The discriminator's global features."""

    @torch.inference_mode()
    def read(levels: Tensor, _: Sequence[int]) -> Tensor:
        return discriminator.encode(levels.to(device).float() / 127.5 - 1).global_

    return Reader(f"global-{digest[:16]}", read)


def clip_reader(scorer: ClipScorer, plan: Plan) -> Reader:
    """Cosines of images and their captions."""

    def read(levels: Tensor, numbers: Sequence[int]) -> Tensor:
        return torch.from_numpy(scorer(_as_files(levels), [plan.captions[number] for number in numbers]))[:, None]

    return Reader(f"clip-{scorer.digest[:16]}", read)


def _as_files(levels: Tensor) -> NDArray[np.uint8]:
    """Levels 0 to 255 (N, 3, S, S), uint8 or float32, as files would have them: uint8 (N, S, S, 3)."""
    return levels.float().round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def attribute_reader(plan: Plan) -> Reader | None:
    """Whether each attribute of the embedded shapes is read as the caption says; None where captions are of others."""
    expected = [parse_caption(caption) for caption in plan.captions]
    if not all(expected):
        return None

    def read(levels: Tensor, numbers: Sequence[int]) -> Tensor:
        said = [attributes for number in numbers if (attributes := expected[number])]
        return torch.from_numpy(right_attributes(_as_files(levels), said))

    return Reader("attributes", read)


@dataclass(frozen=True)
class Features:
    """Features of real and drawn images, float32 (N, D) and (M, D), without rows of images that cannot be decoded."""

    real: Tensor
    drawn: Tensor


def kid_scores(features: Features, seed: int) -> tuple[dict[str, float], int]:
    """`kid`, its `kid_std` over subsets, and how large these were."""
    try:
        kid = kernel_distance(features.real, features.drawn, seed=seed)
    except ValueError as error:
        raise UserError(f"{error}; take more with --images") from error
    return {"kid": kid.mean, "kid_std": kid.deviation}, kid.subset_size


def precision_recall_scores(features: Features) -> dict[str, float]:
    """`precision` and `recall`."""
    try:
        precision, recall = precision_recall(features.real, features.drawn)
    except ValueError as error:
        raise UserError(f"{error}; take more with --images") from error
    return {"precision": precision, "recall": recall}


def retrieval_scores(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """`retrieval_r1` and `retrieval_r10`, shares of drawn images whose own real image is the nearest or among the ten
    nearest, and `retrieval_rank`, the median rank of that.

    Args:
        real: features (R, D) of the images of the first R samples; NaN where there is no image.
        drawn: features (N, D) of drawn images, the first R of which are of these samples, in their order.
    """
    there = ~real.isnan().any(1)
    rows = there[: len(drawn)].nonzero().flatten()
    ranks = retrieval_ranks(drawn[rows], real[there], (there.cumsum(0) - 1)[rows]).double()
    return {
        "retrieval_r1": float((ranks == 1).double().mean()),
        "retrieval_r10": float((ranks <= 10).double().mean()),
        "retrieval_rank": float(ranks.quantile(0.5)),
    }


def frechet_scores(real: Tensor | Statistics, drawn: Tensor, extractor: Extractor) -> dict[str, float]:
    """`fid`, or `fd-<hash>` where the weights are not FID's; with a warning where there are few images."""
    name = extractor.frechet_name
    counts = [len(drawn)] + ([len(real)] if isinstance(real, Tensor) else [])
    if min(counts) < extractor.num_features:
        raise UserError(
            f"{name} of {min(counts)} images says nothing: it needs {extractor.num_features} real and generated ones "
            "or more, as many as features; take more with --images, or another metric, such as kid"
        )
    if min(counts) < FEW_FOR_FRECHET:
        warnings.warn(
            f"{name} of {min(counts)} images is larger than of {FEW_FOR_FRECHET} or more: compare it only with figures "
            "of as many",
            stacklevel=2,
        )
    return {name.lower(): frechet_distance(real, drawn)}


def attribute_scores(right: Tensor) -> dict[str, float]:
    """Shares of images whose attributes are as said, from booleans (N, 5)."""
    return {f"accuracy_{name}": share for name, share in attribute_shares(right.bool().numpy()).items()}


def clip_scores(real: Tensor, drawn: Tensor) -> dict[str, float]:
    """`clip`, and `clip_real` of the real images and their captions, from cosines (N, 1)."""
    scores = {"clip": clip_score(drawn.flatten().numpy())}
    return scores | ({"clip_real": clip_score(real.flatten().numpy())} if len(real) else {})


@dataclass(frozen=True, kw_only=True)
class RPrecision:
    """How R-precision is computed: among how many captions, of which others, with which seed."""

    candidates: int = 100
    negatives: Negatives = "any"
    seed: int = 0

    def scores(self, plan: Plan, real: Tensor, drawn: Tensor, sentences: Tensor) -> dict[str, float]:
        """`r_precision`, and `r_precision_real` of the real images.

        Args:
            plan: of the drawn images.
            real: discriminator's features (R, D) of the first R images' samples; NaN where there is no image.
            drawn: the same (N, D) of the drawn images.
            sentences: projected sentence features (N, D) of their captions.

        Raises:
            UserError: there are no classes, or no captions to tell apart.
        """
        classes = None
        if self.negatives == "other-class":
            if plan.classes is None:
                raise UserError("--negatives other-class needs data with classes, and this has none")
            classes = plan.classes
        ids = np.unique(plan.captions, return_inverse=True)[1]
        there = (~real.isnan().any(1)).numpy().nonzero()[0]
        scores = {}
        for name, features, rows in (
            ("r_precision", drawn, np.arange(len(plan))),
            ("r_precision_real", real[torch.from_numpy(there)], there),
        ):
            if not len(rows):
                continue
            try:
                scores[name] = r_precision(
                    features,
                    sentences[torch.from_numpy(rows)],
                    ids[rows],
                    candidates=self.candidates,
                    seed=self.seed,
                    classes=None if classes is None else classes[rows],
                )
            except ValueError as error:
                raise UserError(f"{error}; take other --data, or leave r-precision out of --metrics") from error
        return scores
