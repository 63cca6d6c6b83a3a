"""Images from prompts with a trained model."""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

import fastt2i
from fastt2i.config import LossConfig
from fastt2i.devices.free_memory import check_memory
from fastt2i.errors import UserError
from fastt2i.models.independent_rows import IndependentRows
from fastt2i.models.noise import SeededNoise, slerp
from fastt2i.models.pretrained import PretrainedModel, load_pretrained, save_pretrained
from fastt2i.pictures.pixels import to_pillow
from fastt2i.request import Part, Request
from fastt2i.text.features import TextFeatures

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BATCH_SIZE = 64
#: Prompts whose features are kept.
PROMPTS_KEPT = 256
#: Bytes that a pixel takes: as numbers, in parts and together, and as a picture.
PIXEL_BYTES = 30


class Drawing(NamedTuple):
    """The images (num, 3, S, S) of a request, in [-1, 1], their scores (num,), or None where they were not asked for,
    and the place of each among the candidates, by which its noise is known."""

    request: Request
    images: Tensor
    scores: Tensor | None
    numbers: list[int]


class TextToImagePipeline:
    """Draws what prompts say.

    Several threads may use one pipeline: each gets the images that it would get alone. What torch's default dtype and
    default device are, and whether autocast is on, makes no difference.

    >>> pipeline = TextToImagePipeline.from_pretrained("runs/demo")
    >>> pipeline(["a small red circle at the top left on a white background"], seed=1)[0].save("circle.png")

    Args:
        model: a trained model.
        device: where to run; None takes a GPU if there is one.
        dtype: float32, bfloat16 or float16: what the networks multiply in. The language model stays in float32.

    Raises:
        UserError: the language model is not to be found, or there is no such dtype.
    """

    def __init__(
        self,
        model: PretrainedModel,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"dtype is {dtype}; it must be one of {', '.join(map(str, DTYPES))}")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype
        self.model = model
        for network in (model.generator, model.discriminator):
            network.to(self.device).eval()
            if self.device.type == "cpu":  # as what they convolve is, or every pass would turn the weights round
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._discriminator = model.discriminator
        self._networks = IndependentRows(model.generator, model.discriminator, self.device, dtype)
        self._encoder = model.load_text_encoder(self.device)
        self._encoding = threading.Lock()  # a tokenizer is one thread's at a time
        self._encoded: OrderedDict[str, TextFeatures] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        """For copies and other processes, each of which has a lock of its own."""
        return {name: value for name, value in vars(self).items() if name != "_encoding"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _encoding=threading.Lock())

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        *,
        revision: str | None = None,
        offline: bool = False,
    ) -> TextToImagePipeline:
        """Load a model folder, the one in a run directory, or `user/name` from the hub or its cache.

        Args:
            model: the folder, or the name on the hub.
            device, dtype: as of the pipeline.
            revision: branch, tag or commit on the hub.
            offline: take what the hub's cache has, and ask no network.

        Raises:
            UserError: there is no model, it is damaged, or its language model is not to be found.
        """
        return cls(load_pretrained(model, revision=revision, offline=offline), device, dtype)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model folder with its card: `from_pretrained` reads it back."""
        from fastt2i.models.model_card import model_card

        save_pretrained(self.model, Path(directory), model_card(self.model), {})

    def push_to_hub(self, name: str, *, private: bool = False, revision: str | None = None) -> str:
        """Upload the model folder as `user/name`; returns its address. See `fastt2i.models.publish.push_to_hub`."""
        from fastt2i.models.publish import push_to_hub

        return push_to_hub(self.model, name, private=private, revision=revision)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        seed: int = 0,
        num: int = 1,
        truncation: float = 1.0,
        best_of: int | None = None,
        negative_prompt: str = "",
        batch_size: int = BATCH_SIZE,
    ) -> list[Image.Image]:
        """Draw `num` images of each prompt; the settings are those of `Request`.

        An image depends on its prompt, its number among the candidates, seed and truncation, not on what is drawn with
        it: on a CPU bit for bit, with as many threads; on a GPU batches of another size round otherwise, which may be
        seen as one of 255 levels.

        Args:
            prompts: one prompt or several.
            seed, num, truncation, best_of, negative_prompt: as of `Request`.
            batch_size: images drawn in one pass.

        Returns:
            len(prompts) * num images, those of the first prompt first. `fastt2i.pictures.pixels.png` writes what is in
            their `info`: prompt, seed and model.

        Raises:
            UserError: a prompt is empty, or a setting is none that can be drawn.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        requests = [
            Request(
                prompt=prompt,
                seed=seed,
                num=num,
                truncation=truncation,
                best_of=best_of,
                negative_prompt=negative_prompt,
            )
            for prompt in prompts
        ]
        for number, request in enumerate(requests, 1):
            for note in self.notes(request.prompt):
                warnings.warn(f"prompt {number} {note}", stacklevel=2)
        return [image for drawing in self.draw(requests, batch_size=batch_size) for image in self.to_pillow(drawing)]

    def draw(self, requests: Sequence[Request], *, scores: bool = False, batch_size: int = BATCH_SIZE) -> list[Drawing]:
        """Draw several requests in as few passes as their images fill.

        Args:
            requests: what to draw.
            scores: score the images also where there is nothing to choose.
            batch_size: images drawn in one pass.
        """
        noise_dim = self.model.generator.noise_dim
        parts = [part for request in requests for part in request.parts(noise_dim)]
        return self.draw_parts(parts, scores=scores, batch_size=batch_size)

    @torch.inference_mode()
    def draw_parts(self, parts: Sequence[Part], *, scores: bool = False, batch_size: int = BATCH_SIZE) -> list[Drawing]:
        """As `draw`, of parts of requests: the images of one are those that it has of the whole request."""
        if not parts:
            return []
        counts = [len(part.numbers) for part in parts]
        self.check_memory(sum(counts))
        rows = torch.arange(len(parts), device=self.device).repeat_interleave(torch.tensor(counts, device=self.device))
        sentences = self._encode([part.request.prompt for part in parts]).sentence
        noise = torch.cat([part.noise.rows(part.numbers) for part in parts])
        images = self._generate(sentences[rows], noise.to(self.device), batch_size)
        if not scores and all(part.request.candidates == part.request.num for part in parts):
            each = zip(parts, images.split(counts), strict=True)
            return [Drawing(part.request, own, None, list(part.numbers)) for part, own in each]
        negative = self._encode_negative([part.request.negative_prompt for part in parts])
        logits = self._networks.logits(
            images, sentences[rows], None if negative is None else negative[rows], batch_size
        )
        return [_choose(*each) for each in zip(parts, images.split(counts), logits.split(counts), strict=True)]

    @torch.inference_mode()
    def score(self, images: Tensor, prompt: str, negative_prompt: str = "") -> Tensor:
        """The discriminator's logits (N,) of images (N, 3, S, S) under a prompt: <global, P s> + MLP(global).

        The match with the negative prompt, <global, P s'>, is taken off; how real an image looks then still counts.
        """
        sentence, negative = self._encode([prompt]).sentence, self._encode_negative([negative_prompt])
        count = len(images)
        return self._networks.logits(
            images, sentence.expand(count, -1), None if negative is None else negative.expand(count, -1), BATCH_SIZE
        )

    @torch.inference_mode()
    def attention(self, images: Tensor, prompt: str) -> tuple[list[str], Tensor]:
        """Where each keyword of a prompt looks in images (N, 3, S, S): the T keywords and maps (N, T, H, W).

        A map sums to 1. It is the attention over regions of the loss that the discriminator was trained with.
        """
        from fastt2i.ops import region_keyword_attention

        with self._encoding:
            words = self._encoder.keywords(prompt)
        text = self._encode([prompt])
        with self._networks.autocast():
            regions = self._discriminator.encode(images).regions.float()
            keywords = self._discriminator.keywords(text.keywords[:, : len(words)]).float()
        facts, loss = self.model.facts, LossConfig()
        maps = region_keyword_attention(
            regions,
            keywords.expand(len(images), -1, -1),
            variant=facts.get("region_variant", loss.region_variant),
            gamma_attention=facts.get("gamma_attention", loss.gamma_attention),
        )
        grid = self.model.config.region_grid
        return words, maps.unflatten(2, (grid, grid))

    @torch.inference_mode()
    def interpolate(
        self,
        prompt_a: str,
        prompt_b: str,
        frames: int = 24,
        *,
        seed: int = 0,
        seed_b: int | None = None,
        truncation: float = 1.0,
        batch_size: int = BATCH_SIZE,
    ) -> list[Image.Image]:
        """Images on the way from one prompt to another, and from one seed to another where two are given.

        Sentence features and noise go along great circles, on which they keep the lengths that the generator knows
        (Shoemake 1985, slerp).

        Args:
            prompt_a, prompt_b: the prompts of the first and the last frame, which may be the same.
            frames: how many images, 2 or more.
            seed: of the noise; of the first frame's where `seed_b` is given.
            seed_b: of the last frame's noise.
            truncation: as of `Request`.
            batch_size: images drawn in one pass.
        """
        if frames < 2:
            raise UserError(f"frames is {frames}; it must be 2 or more")
        self.check_memory(frames)
        ends = [
            Request(prompt=prompt_a, seed=seed, truncation=truncation),
            Request(prompt=prompt_b, seed=seed if seed_b is None else seed_b, truncation=truncation),
        ]
        way = torch.linspace(0, 1, frames, dtype=torch.float32, device=self.device)
        a, b = self._encode([end.prompt for end in ends]).sentence
        noise_dim = self.model.generator.noise_dim
        z_a, z_b = (SeededNoise(end.seed, noise_dim, truncation).rows(range(1))[0].to(a) for end in ends)
        images = to_pillow(self._generate(slerp(a, b, way), slerp(z_a, z_b, way), batch_size))
        for image, share in zip(images, way.tolist(), strict=True):
            told = {"to_prompt": prompt_b, "to_seed": str(ends[1].seed), "way": f"{share:.4f}"}
            image.info.update(self._info(ends[0]) | told)
        return images

    def notes(self, prompt: str) -> list[str]:
        """What keeps the model from following a prompt, as ends of sentences; nothing of most."""
        with self._encoding:
            longer, unknown = self._encoder.truncated([prompt]), self._encoder.unknown(prompt)
        notes = ["is longer than the language model reads; the rest of it is ignored"] if longer else []
        if unknown:
            name = self.model.text.model
            notes += [f"has no word that the language model {name} knows, so the image will not follow it"]
        return notes

    def to_pillow(self, drawing: Drawing) -> list[Image.Image]:
        """The images of a drawing; their `info` says what they are."""
        images = to_pillow(drawing.images)
        for place, (image, number) in enumerate(zip(images, drawing.numbers, strict=True)):
            image.info.update(self._info(drawing.request), number=str(number))
            if drawing.scores is not None:
                image.info["score"] = f"{drawing.scores[place].item():.4f}"
        return images

    def _info(self, request: Request) -> dict[str, str]:
        given = {name: str(value) for name, value in vars(request).items() if value not in (None, "")}
        return given | {"model": self.model.digest, "software": f"fastt2i {fastt2i.__version__}"}

    def _encode(self, texts: Sequence[str]) -> TextFeatures:
        """Features of texts; those of the last ones are at hand, for their attention, and for other seeds.

        On a CPU each text is read by itself: with longer ones it would be padded, which rounds otherwise.
        """
        with self._encoding:
            unread = [text for text in dict.fromkeys(texts) if text not in self._encoded]
            size = 1 if self.device.type == "cpu" else BATCH_SIZE
            for some in (unread[start : start + size] for start in range(0, len(unread), size)):
                features = (part.to(self.device).split(1) for part in self._encoder(some))
                self._encoded.update(zip(some, map(TextFeatures, *features), strict=True))
            found = [self._encoded[text] for text in texts]
            for text in texts:
                self._encoded.move_to_end(text)
            while len(self._encoded) > PROMPTS_KEPT:
                self._encoded.popitem(last=False)
        return TextFeatures(*map(torch.cat, zip(*found, strict=True)))

    def check_memory(self, count: int) -> None:
        """Raise UserError where memory does not hold so many images at once."""
        size = self.model.config.image_size
        check_memory(count * size**2 * PIXEL_BYTES, f"{count} images of {size} px at once", "ask for fewer")

    def _generate(self, sentences: Tensor, noise: Tensor, batch_size: int) -> Tensor:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; it must be 1 or more")
        return self._networks.images(sentences, noise, batch_size)

    def _encode_negative(self, prompts: Sequence[str]) -> Tensor | None:
        """Sentence features (N, d), zero where there is no prompt; None where there is none at all."""
        given = [place for place, prompt in enumerate(prompts) if prompt.strip()]
        if not given:
            return None
        own = self._encode([prompts[place] for place in given]).sentence
        return own.new_zeros(len(prompts), own.shape[1]).index_copy(0, torch.tensor(given, device=self.device), own)


def _choose(part: Part, images: Tensor, scores: Tensor) -> Drawing:
    """The best of a request's candidates, where it asks for a choice."""
    order = torch.arange(len(images), device=images.device)
    if part.request.best_of is not None:
        order = scores.argsort(descending=True, stable=True)[: part.num]
    return Drawing(part.request, images[order], scores[order], [part.numbers[place] for place in order.tolist()])
