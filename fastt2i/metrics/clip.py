"""CLIP score: do images and captions agree, by a CLIP model from a local directory?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastt2i.errors import UserError
from fastt2i.text.language_model import language_model_digest


class ClipScorer:
    """Cosines of images and captions.

    Args:
        directory: a CLIP model as transformers writes it: weights, tokenizer and the image processor's settings.
        device: where it runs.

    Attributes:
        digest: SHA-256 of its weights, tokenizer and settings.

    Raises:
        UserError: the directory holds no CLIP model that can be read.
    """

    def __init__(self, directory: Path, device: torch.device) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        if not directory.is_dir():
            raise UserError(f"there is no directory {directory}; --clip takes one with a CLIP model of transformers")
        try:
            loaded: Any = CLIPModel.from_pretrained(
                directory, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            missing = sorted(report["missing_keys"])
            if missing:  # transformers would draw them at random
                raise ValueError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
            self._processor = CLIPImageProcessorPil.from_pretrained(directory, local_files_only=True)
        except Exception as error:  # transformers raises what it likes for files that are missing or damaged
            what = " ".join(str(error).split())[:300]
            raise UserError(f"{directory} holds no CLIP model that can be read ({what})") from error
        self._model = model.to(device).eval()
        self._device = device
        self._longest = model.config.text_config.max_position_embeddings
        self.digest = language_model_digest(directory)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.float32]:
        """Cosine of each image, uint8 (N, H, W, 3), and its caption -> float32 (N,).

        The processor's settings resize and scale images; captions are cut off where the model's positions end.
        """
        pixels = self._processor(images=list(images), return_tensors="pt")["pixel_values"].to(self._device)
        tokens = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self._device)
        seen = self._model.get_image_features(pixel_values=pixels).pooler_output
        said = self._model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return torch.cosine_similarity(seen.float(), said.float(), dim=1).cpu().numpy()


def clip_score(cosines: NDArray[np.float32]) -> float:
    """100 times the mean cosine, at least 0, as torchmetrics' `CLIPScore` (Hessel et al. 2021 multiply by 2.5)."""
    return max(0.0, 100 * float(cosines.astype(np.float64).mean()))
