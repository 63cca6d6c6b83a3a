"""Language models of any family, as transformers reads them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.utils.logging as transformers_logging
from torch import Tensor, nn

from fastt2i.errors import UserError
from fastt2i.text.tokens import LONGEST, CaptionTokenizer

#: Code that comes with a model is never run, and nobody is asked whether it should be.
_OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class LastHiddenState(nn.Module):
    """What transformers' network says of each token: `input_ids` and `attention_mask` (B, L) → (B, L, d)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def read_any_family(directory: Path) -> tuple[CaptionTokenizer, nn.Module, int]:
    """The tokenizer and the network of a folder, and d, the size of its features.

    Raises:
        UserError: the tokenizer is none of the library tokenizers.
        Exception: of many kinds, where files are missing or damaged.
    """
    with _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, **_OPTIONS)
        network = _text_network(directory)
    if not tokenizer.is_fast:
        raise UserError(
            f"the language model {directory} has no fast tokenizer, which keywords need; choose one that has a "
            "tokenizer.json"
        )
    positions = getattr(network.config, "max_position_embeddings", None) or LONGEST
    special = tokenizer.pad_token_id, tokenizer.eos_token_id
    read = CaptionTokenizer(
        tokenizer.backend_tokenizer,
        unknown=tokenizer.unk_token,
        padding=next((token for token in special if token is not None), 0),
        longest=min(tokenizer.model_max_length, positions),
        cut_at=tokenizer.truncation_side,
    )
    dims = (getattr(network.config, name, None) for name in ("hidden_size", "d_model", "n_embd", "dim"))
    return read, LastHiddenState(network), next(dim for dim in dims if dim)


def _text_network(directory: Path) -> Any:
    """The part of a model that reads text: the encoder of an encoder-decoder, the text tower of CLIP; in float32.

    Raises:
        ValueError: weights are missing, which transformers would draw at random.
    """
    config = transformers.AutoConfig.from_pretrained(directory, **_OPTIONS)
    for_text = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING
    kind = transformers.AutoModelForTextEncoding if for_text else transformers.AutoModel
    network, report = kind.from_pretrained(directory, dtype=torch.float32, output_loading_info=True, **_OPTIONS)
    # Models that were trained to fill gaps have no pooler, and none is needed here.
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
    if not for_text and getattr(config, "is_encoder_decoder", False):
        return network.get_encoder()
    return getattr(network, "text_model", network)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and notices of loading: the terminal is the run's."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
