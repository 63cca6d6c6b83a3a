"""Images from prompts with a trained model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from fastt2i.errors import UserError
from fastt2i.models.pretrained import PretrainedModel, load_pretrained, save_pretrained
from fastt2i.pictures.pixels import to_pillow


class TextToImagePipeline:
    """Draws what prompts say.

    >>> pipeline = TextToImagePipeline.from_pretrained("runs/demo")
    >>> pipeline(["a small red circle at the top left on a white background"], seed=1)[0].save("circle.png")

    Args:
        model: a trained model.
        device: where to run; None takes a GPU if there is one.
    """

    def __init__(self, model: PretrainedModel, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model
        self._generator = model.generator.to(self.device).eval()
        self._encoder = model.load_text_encoder(self.device)

    @classmethod
    def from_pretrained(cls, directory: str | Path, device: str | torch.device | None = None) -> TextToImagePipeline:
        """Load a model folder, or the one in a run directory.

        Raises:
            UserError: there is no model, it is damaged, or its language model is not to be found.
        """
        return cls(load_pretrained(Path(directory)), device)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model folder with its card: `from_pretrained` reads it back."""
        from fastt2i.models.model_card import model_card

        save_pretrained(self.model, Path(directory), model_card(self.model), {})

    @torch.inference_mode()
    def __call__(
        self, prompts: str | Sequence[str], *, seed: int = 0, num: int = 1, batch_size: int = 32
    ) -> list[Image.Image]:
        """Draw `num` images of each prompt.

        The image of a prompt depends on the prompt, its number among the `num`, the seed and the device, not on the
        other prompts.

        Args:
            prompts: one prompt or several.
            seed: of the noise; the same seed gives the same images.
            num: images of each prompt.
            batch_size: images drawn at once.

        Returns:
            len(prompts) * num images, those of the first prompt first.

        Raises:
            UserError: a prompt is empty.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        for number, prompt in enumerate(prompts, 1):
            if not prompt.strip():
                raise UserError(f"prompt {number} is empty; say in a few words what to draw")
        if num < 1:
            raise UserError(f"num is {num}; it must be 1 or more")
        if not prompts:
            return []
        self._warn(prompts)
        sentence = self._encoder(prompts).sentence.to(self.device).repeat_interleave(num, dim=0)
        noise = torch.randn(num, self._generator.noise_dim, generator=torch.Generator().manual_seed(seed))
        noise = noise.to(self.device).repeat(len(prompts), 1)
        images = [
            self._generator(s, z).images
            for s, z in zip(sentence.split(batch_size), noise.split(batch_size), strict=True)
        ]
        return to_pillow(torch.cat(images))

    def _warn(self, prompts: Sequence[str]) -> None:
        for number in self._encoder.truncated(prompts):
            warnings.warn(
                f"prompt {number + 1} is longer than the language model reads; the rest of it is ignored", stacklevel=3
            )
        for number, prompt in enumerate(prompts, 1):
            if self._encoder.unknown(prompt):
                warnings.warn(
                    f"prompt {number}: the language model {self.model.text.model} knows none of its words, so the "
                    "image will not follow it",
                    stacklevel=3,
                )
