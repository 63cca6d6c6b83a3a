"""Distances of two sets of images by features of a network: Fréchet distance, KID, precision and recall."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastt2i.errors import UserError

if TYPE_CHECKING:
    from torchmetrics.image.fid import FrechetInceptionDistance

#: Subsets that KID is a mean over, and images of each, as the field has them.
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
#: The neighbour whose distance is the radius around an image.
NEIGHBOUR = 3
#: Below this many images the Fréchet distance is known to be too large by more than models differ (Chong and Forsyth
#: 2020, "Effectively Unbiased FID").
FEW_FOR_FRECHET = 10_000
_ROWS = 1024  # features in double precision, and distances, that are in memory at once


class Statistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: Tensor
    covariance: Tensor


class Kid(NamedTuple):
    """Kernel distance: mean and standard deviation over subsets, and how large these were."""

    mean: float
    deviation: float
    subset_size: int


class _Given(nn.Module):
    """What torchmetrics calls as a network, where the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Tensor | Statistics, generated: Tensor) -> float:
    """The Fréchet distance of Gaussians, which is FID on Inception's features (Heusel et al. 2017); by torchmetrics.

    Args:
        real: features (N, D), or the statistics of such.
        generated: features (M, D).

    Raises:
        ValueError: fewer images than features: their covariance says nothing of most directions.
    """
    size = generated.shape[1]
    for name, features in (("real", real), ("generated", generated)):
        if isinstance(features, Tensor) and len(features) < size:
            raise ValueError(f"there are {len(features)} {name} images, and {size} features need as many or more")
    metric = _frechet_metric()(_Given(size))
    if isinstance(real, Statistics):
        # The sums that two images of these statistics would leave: torchmetrics computes from sums alone.
        mean, covariance = (part.double() for part in real)
        metric.real_features_sum = 2 * mean
        metric.real_features_cov_sum = covariance + 2 * torch.outer(mean, mean)
        metric.real_features_num_samples = torch.tensor(2)
    else:
        for rows in real.split(_ROWS):
            metric.update(rows.double(), real=True)
    for rows in generated.split(_ROWS):
        metric.update(rows.double(), real=False)
    return float(metric.compute())


def _frechet_metric() -> type[FrechetInceptionDistance]:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise missing_torchmetrics(error) from error
    return FrechetInceptionDistance


def missing_torchmetrics(error: ImportError) -> UserError:
    """What to say where torchmetrics, or something that it imports, is not there."""
    return UserError(f'torchmetrics cannot be imported ({error}): pip install "fastt2i[eval]"')


def kernel_distance(real: Tensor, generated: Tensor, *, seed: int = 0, subsets: int = KID_SUBSETS) -> Kid:
    """The unbiased squared maximum mean discrepancy with the cubic kernel of KID (Binkowski et al. 2018).

    A mean over random subsets of 1,000 images each, or of half of the smaller set where it has fewer than 2,000. The
    discrepancy is torchmetrics'; subsets are drawn here, because theirs come from torch's global generator, and all
    features would have to be in memory in double precision.

    Args:
        real, generated: features (N, D) and (M, D).
        seed: of the subsets.
        subsets: how many.

    Raises:
        ValueError: a set has fewer than 4 images.
    """
    try:
        from torchmetrics.image.kid import poly_mmd
    except ImportError as error:
        raise missing_torchmetrics(error) from error
    least = min(len(real), len(generated))
    if least < 4:
        raise ValueError(f"KID needs 4 images or more of each set, and there are {least}")
    size = min(KID_SUBSET_SIZE, least // 2)
    random = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x, y = (features[torch.randperm(len(features), generator=random)[:size]] for features in (real, generated))
        values.append(float(poly_mmd(x.double(), y.double())))
    return Kid(float(np.mean(values)), float(np.std(values)), size)


def precision_recall(real: Tensor, generated: Tensor, *, neighbour: int = NEIGHBOUR) -> tuple[float, float]:
    """Shares of generated images near a real one, and of real images near a generated one (Kynkäänniemi et al. 2019).

    Near is within the distance of that image's own third nearest neighbour in its set. It is written here because
    torchmetrics has it not and torch-fidelity needs torchvision; in double precision, some rows at a time.

    Args:
        real, generated: features (N, D) and (M, D).
        neighbour: whose distance is the radius.

    Returns:
        precision and recall.

    Raises:
        ValueError: a set has no more images than that neighbour's number.
    """
    least = min(len(real), len(generated))
    if least <= neighbour:
        raise ValueError(f"precision and recall need {neighbour + 1} images or more of each set, and there are {least}")
    return _share_covered(generated, real, neighbour), _share_covered(real, generated, neighbour)


def _share_covered(points: Tensor, balls: Tensor, neighbour: int) -> float:
    """Share of points (N, D) that lie in a ball around one of (M, D), which reaches to its own k-th neighbour."""
    radii = torch.cat([_distances(rows, balls).kthvalue(neighbour + 1).values for rows in balls.split(_ROWS)])
    covered = [(_distances(rows, balls) <= radii).any(1) for rows in points.split(_ROWS)]
    return float(torch.cat(covered).double().mean())


def _distances(rows: Tensor, others: Tensor) -> Tensor:
    rows = rows.double()
    return torch.cat([torch.cdist(rows, part.double()) for part in others.split(_ROWS)], dim=1)


def load_statistics(content: dict[str, NDArray[np.float64]], where: str, num_features: int) -> Statistics:
    """The statistics in a `.npz`, as pytorch-fid and DF-GAN write them: `mu` (D,) and `sigma` (D, D).

    Raises:
        UserError: they are missing, or of another number of features.
    """
    if not {"mu", "sigma"} <= content.keys():
        raise UserError(f"{where} holds no statistics of features: it needs the arrays mu and sigma")
    mean, covariance = (torch.from_numpy(np.asarray(content[name], dtype=np.float64)) for name in ("mu", "sigma"))
    if mean.shape != (num_features,) or covariance.shape != (num_features, num_features):
        raise UserError(f"{where} holds statistics of {mean.numel()} features; the network has {num_features}")
    return Statistics(mean, covariance)
