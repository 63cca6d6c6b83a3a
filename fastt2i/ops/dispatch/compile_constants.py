"""What torch.compile takes for a constant instead of tracing it. Imported then alone: torch's compiler loads slowly."""

from __future__ import annotations

import torch

from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.ops.dispatch.timing_cache import best

#: It may read a file, which cannot be traced: what is known by then goes into the compiled code.
best_when_traced = torch.compiler.assume_constant_result(best)

#: Its cache is what cannot be traced, and what it asks of the machine.
multiplies_bf16_when_traced = torch.compiler.assume_constant_result(multiplies_bf16.__wrapped__)


@torch.compiler.assume_constant_result
def num_threads_when_traced() -> int:
    return torch.get_num_threads()
