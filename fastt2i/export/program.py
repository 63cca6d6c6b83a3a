"""From a model to a file: traced, written, and compared with the images that the pipeline draws."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.export import ExportedProgram

import fastt2i
from fastt2i.errors import UserError
from fastt2i.export.exported_networks import ImagesFromSentences, ImagesFromTokens, What, example_inputs, open_sizes
from fastt2i.export.file_formats import OnnxFile, Pt2File
from fastt2i.export.int8 import quantize_weights
from fastt2i.export.portable_tokenizer import portable_tokenizer
from fastt2i.files.io_errors import writing
from fastt2i.models.pretrained import PretrainedModel
from fastt2i.text.encoder import TextEncoder

SUFFIXES = (".onnx", ".pt2")
#: Images that an export is compared by.
COMPARED = 96
#: Levels of 255 by which other roundings may move a pixel where weights are the model's own.
ROUNDING = 1


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where it is.
        megabytes: its size, in 10^6 bytes.
        facts: what stands in it: what it needs, its inputs and outputs, and by how many of 255 levels its images differ
            from the pipeline's.
    """

    path: Path
    megabytes: float
    facts: Mapping[str, Any]


def export_model(model: PretrainedModel, path: str | Path, *, what: What = "whole", int8: bool = False) -> Exported:
    """Write a model as one file, and compare its images with those that are drawn here.

    Args:
        model: a trained model.
        path: the file: `.onnx` for ONNX, `.pt2` for torch.export.
        what: `generator` draws from sentence features; `whole` has the language model and its tokenizer too, and draws
            from text.
        int8: round the weights to 8 bits.

    Raises:
        UserError: the suffix is another one, a library is missing, a network cannot be traced, or with the model's own
            weights the file's images would differ by more than one level from the pipeline's; nothing is written then.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} has the suffix {path.suffix!r}; it must be {' or '.join(SUFFIXES)}")
    if what not in get_args(What):
        raise UserError(f"what is {what!r}; it must be {' or '.join(get_args(What))}")
    encoder = model.load_text_encoder(torch.device("cpu"))
    generator = copy.deepcopy(model.generator).cpu().eval().requires_grad_(False)
    network: nn.Module = ImagesFromSentences(generator)
    if what == "whole":
        network = ImagesFromTokens(encoder.network, generator)
    tokenizer = portable_tokenizer(encoder) if what == "whole" else None
    expected = _Comparison(model, encoder, generator, tokenizer)
    if int8:
        quantize_weights(network)
    sizes = open_sizes(what, encoder.tokenizer.longest)
    program = _trace(network.eval(), example_inputs(what, generator, model.sentence_dim), sizes)
    file = OnnxFile(program, sizes) if path.suffix == ".onnx" else Pt2File(program)
    difference = expected.difference(file.run)
    if not int8 and difference["max_levels"] > ROUNDING:
        raise UserError(
            f"the file would draw other images than the model, by up to {difference['max_levels']} of 255 levels; "
            "nothing was written"
        )
    facts = _facts(model, generator.noise_dim, what, int8, file.needs) | {"difference_from_pipeline": difference}
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file.write(path, facts, tokenizer)
    return Exported(path=path, megabytes=path.stat().st_size / 1e6, facts=facts)


def _trace(network: nn.Module, inputs: dict[str, Tensor], sizes: dict[str, dict[int, Any]]) -> ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(network, (), kwargs=inputs, dynamic_shapes=sizes)
    except Exception as error:  # torch raises what it likes for what it cannot trace
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"this model cannot be traced by torch.export ({reason.strip()[:200]})") from error


def _facts(model: PretrainedModel, noise_dim: int, what: What, int8: bool, needs: str) -> dict[str, Any]:
    size = model.config.image_size
    texts = {
        "input_ids": "(batch, length) int64: tokens, from the tokenizer.json in this file",
        "attention_mask": "(batch, length) int64: 1 where a token is, 0 in the padding on the right",
    }
    features = {"sentence": f"(batch, {model.sentence_dim}) float32: sentence feature of length sqrt(d)"}
    return {
        "format": 1,
        "what": what,
        "needs": needs + (", and the library tokenizers to make tokens of text" if what == "whole" else ""),
        "inputs": (texts if what == "whole" else features)
        | {"noise": f"(batch, {noise_dim}) float32: standard normal; scaled down, images are more typical"},
        "outputs": {"images": f"(batch, {size}, {size}, 3) uint8: red, green and blue"},
        "image_size": size,
        "noise_dim": noise_dim,
        "weights": "int8, with a float32 scale for 32 of a row; computed in float32" if int8 else "float32",
        "model": model.digest,
        "language_model": {"name": model.text.model, "sha256": model.text_digest},
        "example_prompts": _prompts(model),
        "software": f"fastt2i {fastt2i.__version__}, torch {torch.__version__}",
    }


def _prompts(model: PretrainedModel) -> list[str]:
    """Captions of the model's own kind: its examples, or the words that it was trained with."""
    return list(model.facts.get("example_prompts", [])) or sorted(model.idf)[:8] or ["a picture"]


class _Comparison:
    """Images of the pipeline's networks, before anything is done to them, and the inputs that they are of."""

    def __init__(
        self, model: PretrainedModel, encoder: TextEncoder, generator: nn.Module, tokenizer: str | None
    ) -> None:
        examples = _prompts(model)
        self._prompts = [examples[number % len(examples)] for number in range(COMPARED)]
        self._tokenizer = Tokenizer.from_str(tokenizer) if tokenizer else None
        noise = torch.randn(COMPARED, model.generator.noise_dim, generator=torch.Generator().manual_seed(0))
        self._noise, self._sentences = noise, encoder(self._prompts).sentence
        with torch.no_grad():
            self._expected = ImagesFromSentences(generator)(self._sentences, noise).numpy()  # type: ignore[arg-type]

    def difference(self, run: Callable[[Mapping[str, Tensor]], np.ndarray]) -> dict[str, Any]:
        """By how many levels of 255 the images of `run` differ; batches of several sizes are drawn."""
        drawn = [run(self._inputs(part)) for part in self._batches()]
        levels = np.abs(np.concatenate(drawn).astype(int) - self._expected)
        return {"images": COMPARED, "max_levels": int(levels.max()), "mean_levels": round(float(levels.mean()), 4)}

    def _batches(self) -> Iterator[slice]:
        for start, end in ((0, 1), (1, 4), (4, COMPARED)):
            yield slice(start, end)

    def _inputs(self, part: slice) -> dict[str, Tensor]:
        if self._tokenizer is None:
            return {"sentence": self._sentences[part], "noise": self._noise[part]}
        return token_inputs(self._tokenizer, self._prompts[part]) | {"noise": self._noise[part]}


def token_inputs(tokenizer: Tokenizer, prompts: Sequence[str]) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (B, L) of prompts."""
    encoded = tokenizer.encode_batch(list(prompts))
    return {
        "input_ids": torch.tensor([each.ids for each in encoded]),
        "attention_mask": torch.tensor([each.attention_mask for each in encoded]),
    }
