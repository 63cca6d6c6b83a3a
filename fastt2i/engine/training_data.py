"""What a run learns from: the index, its held-out captions and the text features of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from fastt2i.config import Config
from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.loaders.choose import Choice, choose_loader
from fastt2i.data.loaders.factory import open_loader
from fastt2i.data.loaders.loader import Loader, LoaderName
from fastt2i.data.open import open_dataset
from fastt2i.data.sampler import Sampler
from fastt2i.engine.distributed.world import World
from fastt2i.engine.evaluation import CaptionSet
from fastt2i.engine.inputs import seeded
from fastt2i.errors import UserError
from fastt2i.metrics.spread import real_distance
from fastt2i.text.cache import TextCache
from fastt2i.text.encoder import TextEncoder
from fastt2i.text.features import TextFeatures
from fastt2i.text.prompts import read_prompts

#: Held-out captions that scores are taken on during a run.
SCORED_CAPTIONS = 256
#: Training captions whose features give the mean and covariance that the networks whiten with.
STATISTICS_CAPTIONS = 20_000


class TrainingData:
    """Images, captions and their features.

    Args:
        config: of the run.
        device: where the language model runs, and where evaluation does.
        world: the processes of the run, each of which has its part of every batch.

    Raises:
        UserError: the data or the language model cannot be read.
    """

    def __init__(self, config: Config, device: torch.device, world: World) -> None:
        self._config, self._world = config, world
        whole = open_dataset(
            config.data.path,
            config.data.format,
            image_size=config.model.image_size,
            split="all",
            heldout=config.data.heldout,
            text_column=config.data.text_column,
            leave_out=config.data.leave_out,
            max_bad_fraction=config.data.max_bad_fraction,
        )
        self.index, self.heldout = whole.split("train"), whole.split("heldout")
        if not len(self.index):
            raise UserError(f"everything in {whole.name} is held out; there is nothing to train on")
        self.captions = self.index.caption_table()
        world.print_rank0(_describe(self.index, self.heldout, len(self.captions.captions)))
        self.encoder = TextEncoder(
            config.text.model,
            max_keywords=config.text.max_keywords,
            stop_words=config.text.stop_words,
            device=device,
        )
        coverage = self.encoder.fit_idf(self.captions.captions)
        if lost := coverage.sentence(config.text.model):
            world.print_rank0(f"warning: {lost}")
        cache_dir = Path(config.text.cache_dir) if config.text.cache_dir else None
        self.features = TextCache.open(self.encoder, self.captions.captions, cache_dir, progress=world.is_first)
        self.digest = _digest(self.index)
        self._device = device

    def choose_loader(self, before: LoaderName | None) -> Choice:
        """The loader that suits the settings and this machine; `before` is that of the run that is gone on with."""
        return choose_loader(
            self.index,
            self._sampler(),
            self._config.data,
            image_size=self._decoded_size,
            device=self._device,
            before=before,
        )

    def open_loader(self, name: LoaderName, first_step: int, known: Sequence[Problem]) -> Loader:
        """The batches from `first_step` on. known: undecodable images that were found before it."""
        return open_loader(
            self.index,
            self._sampler(),
            self._config.data,
            image_size=self._decoded_size,
            name=name,
            start_step=first_step,
            known=known,
            device=self._device,
            progress=self._world.is_first,
        )

    @property
    def _decoded_size(self) -> int:
        return self._config.data.decoded_size(self._config.model.image_size)

    def _sampler(self) -> Sampler:
        train = self._config.train
        return Sampler(
            self.captions,
            batch_size=train.batch_size,
            seed=train.seed,
            flip=self._config.data.flip,
            margin=self._decoded_size - self._config.model.image_size,
            rank=self._world.rank,
            world_size=self._world.size,
        )

    def sample_features(self) -> TextFeatures:
        """Features of training captions, evenly spread: all of them, or a sample that gives their statistics."""
        count = len(self.captions.captions)
        return self.features.rows(torch.arange(0, count, -(-count // STATISTICS_CAPTIONS)))

    def real_distance(self) -> float | None:
        """How much two training images of one caption or class differ; see `fastt2i.metrics.spread.real_distance`."""
        return real_distance(self.index, self._config.model.image_size)

    def caption_set(self, noise_dim: int, real_distance: float | None) -> CaptionSet:
        """Captions for grids and scores: held-out ones, or training captions where none are held out."""
        captions = self.scored.caption_table().captions
        order = torch.randperm(len(captions), generator=seeded("held-out captions"))
        chosen = [captions[place] for place in order[:SCORED_CAPTIONS].tolist()]
        return self._captions(chosen, noise_dim, real_distance)

    def prompt_set(self, noise_dim: int) -> CaptionSet | None:
        """The user's own prompts for grids; None without such."""
        path = self._config.log.prompts
        return self._captions(list(read_prompts(Path(path))), noise_dim, None) if path else None

    @property
    def scored(self) -> Dataset:
        """The samples that scores are taken on: those held out, or those trained on where none are."""
        return self.heldout if len(self.heldout) else self.index

    def _captions(self, chosen: Sequence[str], noise_dim: int, real_distance: float | None) -> CaptionSet:
        return CaptionSet(
            chosen,
            self.encoder(chosen),
            noise_dim=noise_dim,
            seed=self._config.train.seed,
            device=self._device,
            real_distance=real_distance,
        )


def _digest(index: Dataset) -> str:
    """SHA-256 of the samples' names and captions: with another one, the same seed gives other batches."""
    digest = hashlib.sha256()
    for key, captions in index:
        digest.update("\0".join([key, *captions, ""]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _describe(index: Dataset, heldout: Dataset, captions: int) -> str:
    lines = [f"data: {index.name}: {len(index)} images with {captions} different captions, {len(heldout)} held out"]
    if index.problems:
        lines.append(f"  left out {len(index.problems)}:")
        lines += [f"    {problem.where}: {problem.what}" for problem in index.problems[:5]]
        if len(index.problems) > 5:
            lines.append(f"    and {len(index.problems) - 5} more, which a run lists in quarantine.jsonl")
    return "\n".join(lines)
