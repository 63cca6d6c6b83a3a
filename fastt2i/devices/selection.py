"""The device that a program runs on."""

from __future__ import annotations

import torch

from fastt2i.errors import UserError


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device that `engine.device` or `--device` names.

    Args:
        name: `auto` (a GPU if there is one), `cpu` or `cuda`.
        local_rank: number of this process among several of its machine, each of which gets a GPU of its own, which is
            made the current one; None for a process that runs alone.

    Raises:
        UserError: a GPU is asked for and there is none, or there are fewer than processes.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no GPU here; use cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank is None:
        return torch.device("cuda")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise UserError(
            f"this is process {local_rank + 1} of its machine, on which torch sees {gpus} GPUs; start one for "
            f"each (--nproc-per-node={gpus}), or take --engine.device cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
