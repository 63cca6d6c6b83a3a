"""What torch.cuda, those of its C++ functions that a CPU build lacks, and the compiler are told of the stand-in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

#: What an H100 answers.
SHARED_MEMORY = 227 << 10
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    total_memory=85_029_158_912,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=48 << 10,
    shared_memory_per_block_optin=SHARED_MEMORY,
    shared_memory_per_multiprocessor=228 << 10,
    L2_cache_size=50 << 20,
    gcnArchName="",
)


class _Stream:
    """A CUDA stream or event: everything has happened already."""

    cuda_stream = stream_id = device_index = 0
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record_event(self, event: Any = None) -> Any:
        return event or _Stream()

    def _nothing(self, *_: Any) -> None:
        pass

    record = synchronize = wait = wait_stream = wait_event = _nothing


def answer_for_a_gpu() -> None:
    """Answer as one H100 would that has done already whatever it was asked for."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._subclasses import fake_tensor

    fake_tensor.init_gpu_context = lambda device: None
    fake_tensor.FakeTensorMode.avoid_device_init = property(lambda self: True)
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": (9, 0),
        "get_device_properties": H100,
        "get_device_name": H100.name,
        "get_arch_list": ["sm_90"],
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "current_stream": _Stream(),
        "mem_get_info": (H100.total_memory, H100.total_memory),
        "max_memory_allocated": 0,
        **dict.fromkeys(("_exchange_device", "_maybe_exchange_device"), 0),
        **dict.fromkeys(("_lazy_init", "init", "synchronize", "set_device", "empty_cache")),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, _always(answer))
    torch.cuda.default_generators = (torch.default_generator,)
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = _always(None)
    torch.cuda.Event = torch.cuda.Stream = _Stream
    for name in ("_cuda_getDevice", "_cuda_setDevice", "_cuda_exchangeDevice", "_cuda_maybeExchangeDevice"):
        setattr(torch._C, name, _always(0))
    torch._C._cuda_getCurrentRawStream = _always(0)
    torch._C._cuda_getDeviceCount = _always(1)
    torch._C._cuda_isCurrentStreamCapturing = _always(False)
    for name in ("current_device", "set_device", "device_count", "synchronize", "get_device_properties", "is_available",
                 "is_bf16_supported", "current_stream"):  # fmt: skip
        setattr(CudaInterface, name, staticmethod(getattr(torch.cuda, name)))
    more = {"get_raw_stream": 0, "exchange_device": 0, "maybe_exchange_device": 0, "get_compute_capability": 90,
            "is_triton_capable": True}  # fmt: skip
    for name, answer in more.items():
        setattr(CudaInterface, name, staticmethod(_always(answer)))
    for name, answer in {"get_device_properties": H100, "current_device": 0, "set_device": None}.items():
        setattr(CudaInterface.Worker, name, staticmethod(_always(answer)))


def _always(answer: Any) -> Any:
    return lambda *_, **__: answer
