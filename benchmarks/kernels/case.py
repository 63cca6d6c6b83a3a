"""A kernel with everything that it is compiled for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from triton.runtime.jit import JITFunction

#: Bytes of shared memory that one program may take, by compute capability.
SHARED_MEMORY = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@dataclass(frozen=True)
class Case:
    """A kernel with everything that it is specialised on.

    Attributes:
        kernel: the function.
        name: tells it from the other cases.
        dtype: of the tensors, `bf16`, `fp16` or `fp32`.
        architecture: compute capability times ten.
        constants: values of the constexpr parameters, and of others that a launch would specialise.
        options: of the compiler.
        types: of the parameters that are neither pointers to the dtype nor integers.
        aligned: whether sizes and strides are multiples of 16, which Triton tells the compiler.
        odd: integers that are not, even so.
        channels_last: whether channels have a stride of 1; else neighbouring positions have.
    """

    kernel: JITFunction
    name: str
    dtype: str
    architecture: int
    constants: dict[str, Any]
    options: dict[str, Any]
    types: dict[str, str] = field(default_factory=dict)
    aligned: bool = True
    odd: tuple[str, ...] = ()
    channels_last: bool = True

    def __str__(self) -> str:
        aligned = "" if self.aligned else ", unaligned"
        layout = "" if self.channels_last else ", NCHW"
        return f"{self.name}, {self.dtype}, sm_{self.architecture}{aligned}{layout}"
