"""The two kinds of file, each made of a traced program: how it runs here, and how it is written."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from fastt2i.errors import UserError
from fastt2i.files.atomic import write_output

#: Names of the texts in a file: facts on it as JSON, and the `tokenizer.json` of the language model, if it is in it.
FACTS, TOKENIZER = "fastt2i.json", "tokenizer.json"
#: What a message of the format that ONNX uses can hold.
LARGEST_ONNX = 2**31 - 2**20


class OnnxFile:
    """A model for ONNX runtimes, without operators of anyone's own.

    Args:
        program: what was traced.
        sizes: names of the open sizes, by input and dimension.

    Raises:
        UserError: a library is missing, or the weights are more than a file of this kind holds.
    """

    def __init__(self, program: ExportedProgram, sizes: dict[str, dict[int, Any]]) -> None:
        try:
            import onnxruntime
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise UserError(f'ONNX needs {error.name}; install it with pip install "fastt2i[export]"') from error
        stored = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
        if stored > LARGEST_ONNX:
            raise UserError(
                f"the weights take {stored / 1e9:.1f} GB, and an ONNX file holds 2; export a .pt2, or --what generator"
            )
        with _quiet():
            made = torch.onnx.export(program, output_names=["images"], dynamic_shapes=sizes, dynamo=True, verbose=False)
        assert made is not None
        self._model = made.model_proto
        (opset,) = (own.version for own in self._model.opset_import if own.domain == "")
        self.needs = f"a runtime for ONNX operators of version {opset}, such as onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            self._model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, inputs: Mapping[str, Tensor]) -> np.ndarray:
        """Images (B, S, S, 3) uint8."""
        return self._session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]

    def write(self, path: Path, facts: Mapping[str, Any], tokenizer: str | None) -> None:
        """The file, with texts in its metadata."""
        texts = {FACTS: json.dumps(facts, ensure_ascii=False)} | ({TOKENIZER: tokenizer} if tokenizer else {})
        for key, value in texts.items():
            self._model.metadata_props.add(key=key, value=value)
        write_output(path, self._model.SerializeToString())


class Pt2File:
    """A program of torch.export, which `torch.export.load` reads.

    Args:
        program: what was traced.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self._program, self._module = program, program.module()
        self.needs = f"torch, {torch.__version__.split('+')[0]} or newer"

    def run(self, inputs: Mapping[str, Tensor]) -> np.ndarray:
        """Images (B, S, S, 3) uint8."""
        with torch.no_grad():
            return self._module(**inputs).numpy()

    def write(self, path: Path, facts: Mapping[str, Any], tokenizer: str | None) -> None:
        """The file, with texts as extra files."""
        texts = {FACTS: json.dumps(facts, ensure_ascii=False)} | ({TOKENIZER: tokenizer} if tokenizer else {})
        content = io.BytesIO()
        torch.export.save(self._program, content, extra_files=texts)
        write_output(path, content.getvalue())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notices of libraries that it would know more operators with."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
