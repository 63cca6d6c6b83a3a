"""Evaluations during a run, by which the best model is kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from fastt2i.config import Config
from fastt2i.engine.distributed.world import World
from fastt2i.engine.scoring.choices import Metric
from fastt2i.engine.scoring.model_evaluation import Evaluation
from fastt2i.engine.scoring.plan import make_plan, shuffled
from fastt2i.engine.scoring.scores import RPrecision, attribute_reader
from fastt2i.engine.training_data import TrainingData
from fastt2i.errors import UserError
from fastt2i.metrics.extractors import EFFICIENTNET_LITE0, open_extractor
from fastt2i.models.pretrained import PretrainedModel

#: Samples without which KID says nothing.
FEWEST_SAMPLES = 8


class RunEvaluation:
    """Scores the model of a run on samples that are the same every time.

    Args:
        config: of the run.
        data: whose held-out samples are drawn and compared with; training samples where none are held out.
        directory: where features of real images are kept.
        device: where networks run.
        real_distance: mean absolute difference of two real images of one caption, in [-1, 1]; None if none are known.

    Raises:
        UserError: what computes features is not installed, there are too few samples, or no such score of them.
    """

    def __init__(
        self, config: Config, data: TrainingData, directory: Path, device: torch.device, real_distance: float | None
    ) -> None:
        log = config.log
        if importlib.util.find_spec("torchmetrics") is None:
            raise UserError('log.evaluate_every needs torchmetrics: pip install "fastt2i[eval]"')
        if len(data.scored) < FEWEST_SAMPLES:
            raise UserError(
                f"log.evaluate_every needs {FEWEST_SAMPLES} held-out samples or more, not {len(data.scored)}; hold out "
                "more with data.heldout"
            )
        self._extractor = open_extractor(EFFICIENTNET_LITE0, device)
        self._dataset = shuffled(data.scored)
        self._plan = make_plan(self._dataset, images=log.evaluate_images, seed=config.train.seed)
        self._data, self._directory, self._device = data, directory, device
        self._real_distance = real_distance
        self._metrics: list[Metric] = ["kid", "pr", "spread"]
        if len(set(self._plan.captions)) > 1:
            self._metrics.append("r-precision")
        if attribute_reader(self._plan) is not None:
            self._metrics.append("attributes")
        needed = {"r_precision": "r-precision", "accuracy_all": "attributes"}.get(log.best, "kid")
        if needed not in self._metrics:
            raise UserError(f"log.best is {log.best}, which these captions have not; take kid")

    def score(self, model: PretrainedModel, world: World) -> dict[str, float]:
        """Scores by name; on ranks other than 0 there are none."""
        result = Evaluation(
            model=model,
            encoder=self._data.encoder,
            dataset=self._dataset,
            plan=self._plan,
            metrics=self._metrics,
            device=self._device,
            directory=self._directory,
            real_count=min(len(self._dataset), len(self._plan)),
            real_distance=self._real_distance,
            extractor=self._extractor,
            r_precision=RPrecision(seed=self._plan.seed),
        ).run(world)
        return result.scores if result else {}
