"""The cache of the operators' times: a JSON file for each device and set of versions, in the user's cache directory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Hashable
from functools import cache
from pathlib import Path

import torch

from fastt2i import __version__
from fastt2i.devices.capabilities import processor
from fastt2i.files.atomic import replace_file
from fastt2i.files.user_cache import user_cache
from fastt2i.kernels.launch import convolution_precision

#: The package whose operators and kernels are timed.
PACKAGE = Path(__file__).parents[2]
#: Milliseconds of each implementation by name; None where it was dropped.
Times = dict[str, float | None]

_loaded: dict[Hashable, dict[str, Times]] = {}


def fastest(device: torch.device, key: str, names: tuple[str, ...], preferred: tuple[str, ...]) -> str | None:
    """The fastest of these implementations of a call, where all were timed; else the first one preferred, or the first.

    None where all of them were dropped, which the reference cannot be: it is the definition.
    """
    times = times_of(device).get(key, {})
    left = [name for name in names if name == "reference" or times.get(name, 0.0) is not None]
    timed = {name: time for name in left if (time := times.get(name)) is not None}
    if timed and set(names) <= set(times):  # times of some say nothing of the others
        return min(timed, key=timed.__getitem__)
    return next((name for name in (*preferred, *names) if name in left), None)


def times_of(device: torch.device) -> dict[str, Times]:
    """All times known of a device, by call."""
    conditions = _conditions(device)
    if conditions not in _loaded:
        _loaded[conditions] = _read(cache_path(device))
    return _loaded[conditions]


def cache_path(device: torch.device) -> Path:
    """The cache file of a device; another version of anything that times depend on has another one."""
    digest = hashlib.sha256(json.dumps(versions(device)).encode()).hexdigest()
    return user_cache("dispatch") / f"{digest[:16]}.json"


def versions(device: torch.device) -> dict[str, str]:
    """Everything that a time depends on besides the call."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        hardware = f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}"
        convolutions, products = _float32_precision()
        arithmetic = f"cuDNN {torch.backends.cudnn.version()}, convolutions {convolutions}, products {products}"
    else:
        hardware = f"{processor()}, {torch.get_num_threads()} threads"
        arithmetic = torch.backends.cpu.get_cpu_capability()
    return {
        "fastt2i": __version__,
        "sources": source_digest(PACKAGE),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "device": f"{device.type}: {hardware}",
        "arithmetic": arithmetic,
    }


def store(device: torch.device, key: str, times: Times) -> None:
    """Add times, on disk too where that can be written; other times of the call, and of other calls, stay."""
    cached_times, path = times_of(device), cache_path(device)
    for other, cached in _read(path).items():
        cached_times[other] = cached | cached_times.get(other, {})
    cached_times[key] = cached_times.get(key, {}) | times
    content = {"versions": versions(device), "milliseconds": dict(sorted(cached_times.items()))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(content, indent=1).encode())
    except OSError as error:
        warnings.warn(f"times of operators cannot be kept in {path}: {error.strerror}", stacklevel=2)


def _conditions(device: torch.device) -> Hashable:
    """The part of `versions` that may change within a process; read at every call of an operator."""
    if device.type == "cuda":
        return device.type, device.index or 0, _float32_precision()
    return device.type, torch.get_num_threads()


def _float32_precision() -> tuple[str, str]:
    """The float32 precision of convolutions and of matrix products: `tf32`, or something else for full precision."""
    return convolution_precision(), torch.backends.cuda.matmul.fp32_precision


def _read(path: Path) -> dict[str, Times]:
    try:
        return json.loads(path.read_bytes())["milliseconds"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"the times of operators in {path} cannot be read ({error}) and are taken anew", stacklevel=2)
        return {}


@cache
def source_digest(package: Path) -> str:
    """A digest of a package's operators and kernels, all files by path and content: times of others are not theirs."""
    digest = hashlib.sha256()
    for folder in ("kernels", "ops"):
        for path in sorted((package / folder).rglob("*.py")):
            name = path.relative_to(package).as_posix()
            digest.update(f"{name}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"
