"""Which arithmetic the networks use. Losses are float32 whatever is chosen here, but for the products of regions with
keywords."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fastt2i.devices.capabilities import multiplies_bf16
from fastt2i.errors import UserError

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and loss scaling for one run.

    Args:
        name: `auto`, `fp32`, `tf32`, `bf16` or `fp16`.
        device: where the networks run.

    Attributes:
        name: what `auto` became, or the name given.
        dtype: of the networks' products.
        casts: whether parameters are cast for them.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        if name == "auto":
            name = "bf16" if multiplies_bf16(device) else "fp32"
        if name == "tf32" and device.type != "cuda":
            raise UserError(
                f"train.precision is tf32, which only a GPU has, but the device is {device}; use fp32 or bf16"
            )
        self.name = name
        self.casts = name in AUTOCAST_DTYPES
        self.dtype = AUTOCAST_DTYPES.get(name, torch.float32)
        self._device_type = device.type

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """While this is open, float32 products on a GPU are in TF32 unless the precision is fp32; then as before.

        Both settings are the whole process's, in which there may be runs of other precisions, and code of others.
        """
        if self._device_type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        exact = self.name == "fp32"
        try:
            torch.set_float32_matmul_precision("highest" if exact else "high")
            torch.backends.cudnn.allow_tf32 = not exact
            yield
        finally:
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]

    def of_penalty(self) -> Precision:
        """What the discriminator's gradient penalty is computed in: bf16 on a GPU, where it is asked for.

        Its gradient is then as exact as the other losses' (`tests/unit/engine/test_precision.py`). In fp16 the squares
        of an image's gradient would need a scale of their own. On a CPU float32 is what training was tried with; in
        bf16 torch's second derivatives are wrong on processors with AMX, of batches of 2, 4, ... 14 images.
        """
        if (self.name == "bf16" and self._device_type == "cuda") or not self.casts:
            return self
        return Precision("fp32", torch.device(self._device_type))

    def make_scaler(self) -> torch.amp.GradScaler:
        """A loss scaler for one optimizer; it does nothing unless the precision is fp16."""
        return torch.amp.GradScaler(self._device_type, enabled=self.name == "fp16")

    def autocast(self) -> torch.autocast:
        """The context that the networks run in."""
        return torch.autocast(self._device_type, dtype=self.dtype, enabled=self.casts)
