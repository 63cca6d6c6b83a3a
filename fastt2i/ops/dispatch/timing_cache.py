"""The table of the operators' times: a JSON file for each device and set of versions, in the user's cache directory."""

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

#: Milliseconds of each implementation by name; None where it was dropped.
Times = dict[str, float | None]

_tables: dict[Hashable, dict[str, Times]] = {}


def best(device: torch.device, key: str, names: tuple[str, ...], preferred: tuple[str, ...]) -> str | None:
    """The fastest of these implementations of a call, where all were timed; else the first one preferred, or the first.

    None where all of them were left out, which the reference cannot be: it is the definition.
    """
    times = table_of(device).get(key, {})
    left = [name for name in names if name == "reference" or times.get(name, 0.0) is not None]
    timed = {name: time for name in left if (time := times.get(name)) is not None}
    if timed and set(names) <= set(times):  # times of some say nothing of the others
        return min(timed, key=timed.__getitem__)
    return next((name for name in (*preferred, *names) if name in left), None)


def table_of(device: torch.device) -> dict[str, Times]:
    """All times known of a device, by call."""
    conditions = _conditions(device)
    if conditions not in _tables:
        _tables[conditions] = _read(path_of(device))
    return _tables[conditions]


def path_of(device: torch.device) -> Path:
    """The file of a device's table; another version of anything that matters has another one."""
    digest = hashlib.sha256(json.dumps(versions(device)).encode()).hexdigest()
    return user_cache("dispatch") / f"{digest[:16]}.json"


def versions(device: torch.device) -> dict[str, str]:
    """Everything that a time depends on besides the call."""
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        hardware = f"{gpu.name}, {gpu.multi_processor_count} multiprocessors, CUDA {torch.version.cuda}"
        convolutions, products = _float32()
        arithmetic = f"cuDNN {torch.backends.cudnn.version()}, convolutions {convolutions}, products {products}"
    else:
        hardware = f"{processor()}, {torch.get_num_threads()} threads"
        arithmetic = torch.backends.cpu.get_cpu_capability()
    return {
        "fastt2i": __version__,
        "sources": _sources(),
        "torch": torch.__version__,
        "triton": _triton_version(),
        "device": f"{device.type}: {hardware}",
        "arithmetic": arithmetic,
    }


def keep(device: torch.device, key: str, times: Times) -> None:
    """Add to the table, on disk too where that can be written; what else is known of the call, and of others, stays."""
    table, path = table_of(device), path_of(device)
    for other, known in _read(path).items():
        table[other] = known | table.get(other, {})
    table[key] = table.get(key, {}) | times
    content = {"versions": versions(device), "milliseconds": dict(sorted(table.items()))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps(content, indent=1).encode())
    except OSError as error:
        warnings.warn(f"times of operators cannot be kept in {path}: {error.strerror}", stacklevel=2)


def _conditions(device: torch.device) -> Hashable:
    """What of `versions` may change within a process; every call of an operator asks."""
    if device.type == "cuda":
        return device.type, device.index or 0, _float32()
    return device.type, torch.get_num_threads()


def _float32() -> tuple[str, str]:
    """How convolutions, and other products of matrices, round float32: `tf32`, or something else where they do not."""
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
def _sources() -> str:
    """A digest of the operators and kernels: what was timed, or found wrong, may not be what there is now."""
    package, digest = Path(__file__).parents[2], hashlib.sha256()
    for path in sorted([*package.glob("ops/*.py"), *package.glob("kernels/*.py")]):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"
