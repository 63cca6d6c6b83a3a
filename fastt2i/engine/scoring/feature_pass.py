"""One pass over images, real or drawn, from which all features are taken; images are never kept."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import BadImage, Decoder
from fastt2i.engine.distributed.world import World
from fastt2i.engine.scoring.feature_store import FeatureStore, key_of
from fastt2i.engine.scoring.plan import Plan
from fastt2i.models.generator import Generator
from fastt2i.text.encoder import TextEncoder

#: Pixels that the generator draws at once, and images that networks of features see at once: both bound the memory.
_PIXELS, _IMAGES = 2**20, 16


@dataclass(frozen=True)
class Reader:
    """Something that is computed of images.

    Attributes:
        name: of what is computed, with a digest of what decides it.
        read: levels (n, 3, S, S), uint8 or float32, and the images' numbers -> (n, D).
    """

    name: str
    read: Callable[[Tensor, Sequence[int]], Tensor]


class Source(Protocol):
    """Images by number."""

    key: str
    """Digest of what decides the images."""

    def __len__(self) -> int: ...

    def levels(self, numbers: range) -> tuple[Tensor, list[int]]:
        """Levels 0 to 255 (k, 3, S, S), uint8 or float32, and the numbers of those images that there are."""


class RealImages:
    """The first `count` images of a dataset, as training sees them; those that cannot be decoded are left out."""

    def __init__(self, dataset: Dataset, image_size: int, count: int) -> None:
        self._decode, self._count = Decoder.of(dataset, image_size), count
        self.key = key_of({"images": _images_digest(dataset), "size": image_size})

    def __len__(self) -> int:
        return self._count

    def levels(self, numbers: range) -> tuple[Tensor, list[int]]:
        images, places = [], []
        for number in numbers:
            try:
                images.append(torch.from_numpy(self._decode(number)))
            except (BadImage, OSError):
                continue
            places.append(number)
        return (torch.stack(images).permute(0, 3, 1, 2) if images else torch.empty(0)), places


class DrawnImages:
    """The images of a plan.

    Args:
        plan: what to draw.
        generator: draws.
        encoder: reads the captions.
        image_size: of the model.
        model_digest: SHA-256 of the generator.
        device: where the generator is.
    """

    def __init__(
        self,
        plan: Plan,
        generator: Generator,
        encoder: TextEncoder,
        *,
        image_size: int,
        model_digest: str,
        device: torch.device,
    ) -> None:
        self._batch = max(1, _PIXELS // image_size**2)
        self._plan, self._generator, self._encoder, self._device = plan, generator, encoder, device
        self._read: dict[str, Tensor] = {}
        captions = hashlib.sha256("\0".join(plan.captions).encode("utf-8", "surrogatepass")).hexdigest()
        how = {name: getattr(plan, name) for name in ("protocol", "seed", "truncation", "cut", "rounded")}
        self.key = key_of(
            how | {"model": model_digest, "text": encoder.digest, "captions": captions, "device": device.type}
        )

    def __len__(self) -> int:
        return len(self._plan)

    @torch.inference_mode()
    def levels(self, numbers: range) -> tuple[Tensor, list[int]]:
        sentences = self.sentences(numbers)
        noise = self._plan.noise(numbers, self._generator.noise_dim).to(self._device)
        parts = []
        for sentence, z in zip(sentences.split(self._batch), noise.split(self._batch), strict=True):
            levels = ((self._generator(sentence, z).images.float() + 1) * 127.5).clamp(0, 255)
            parts.append(levels.round().to(torch.uint8) if self._plan.rounded else levels)
        return torch.cat(parts), list(numbers)

    def sentences(self, numbers: Sequence[int]) -> Tensor:
        """Sentence features (n, d) of these images' captions; those of captions that were read last are at hand."""
        texts = [self._plan.captions[number] for number in numbers]
        unread = [text for text in dict.fromkeys(texts) if text not in self._read]
        if unread:
            self._read = dict(zip(unread, self._encoder(unread).sentence.to(self._device), strict=True)) | {
                text: self._read[text] for text in texts if text in self._read
            }
        return torch.stack([self._read[text] for text in texts])


def read_images(
    source: Source, readers: Sequence[Reader], store: FeatureStore, world: World, *, description: str
) -> None:
    """Compute what is not in the store yet; the processes share the work.

    Raises:
        UserError: on all ranks, where any of them cannot go on.
    """
    own = [chunk for chunk in store.chunks if chunk % world.size == world.rank]
    shown = sys.stderr.isatty() and world.is_first
    with world.raise_together():
        for chunk in tqdm(own, desc=description, unit_scale=64, unit="img", disable=not shown, leave=False):
            missing = [reader for reader in readers if not store.has(reader.name, chunk)]
            if not missing:
                continue
            numbers = store.numbers(chunk)
            levels, there = source.levels(numbers)
            for reader in missing:
                store.save(reader.name, chunk, _read(reader, levels, there, numbers))
    world.all_gather_object(None)  # nobody reads before all have written


def _read(reader: Reader, levels: Tensor, there: list[int], numbers: range) -> Tensor:
    """Features (n, D) of the images of `numbers`, with rows of NaN for those that are not there."""
    if not there:
        return torch.full((len(numbers), 1), float("nan"))
    parts = [reader.read(levels[k : k + _IMAGES], there[k : k + _IMAGES]) for k in range(0, len(there), _IMAGES)]
    found = torch.cat(parts).float().cpu()
    features = found.new_full((len(numbers), found.shape[1]), float("nan"))
    features[torch.tensor(there) - numbers.start] = found
    return features


def _images_digest(dataset: Dataset) -> str:
    """SHA-256 of the images' names, boxes, and files' sizes and times: another one when any image may be another."""
    digest = hashlib.sha256(dataset.name.encode("utf-8", "surrogatepass"))
    for place, key in enumerate(dataset.keys):
        crop = "" if dataset.crops is None else dataset.crops[place].tolist()
        try:
            stamp = "" if dataset.stamp is None else dataset.stamp(place)
        except OSError:
            stamp = "cannot be read"
        digest.update(f"{key}\0{crop}\0{stamp}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
