"""Functions that torch.compile evaluates once, while tracing, and whose results are constants of the compiled code.

A module of its own, imported under a compiler only: marking them loads torch's compiler, which takes a while.
"""

from __future__ import annotations

import torch

from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.kernels.launch import shared_memory
from fastt2i.ops.dispatch.timing_cache import fastest

#: It may read a file, which cannot be traced.
fastest_when_traced = torch.compiler.assume_constant_result(fastest)

#: Neither the cache of these two can be traced, nor what they ask of the machine.
multiplies_bf16_when_traced = torch.compiler.assume_constant_result(multiplies_bf16.__wrapped__)
shared_memory_when_traced = torch.compiler.assume_constant_result(shared_memory.__wrapped__)


@torch.compiler.assume_constant_result
def num_threads_when_traced() -> int:
    return torch.get_num_threads()
