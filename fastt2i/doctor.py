"""`python -m fastt2i.doctor`: what would run on this machine, and why the rest would not."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastt2i.cli import run
from fastt2i.devices.capabilities import processor
from fastt2i.devices.cores import cpu_quota, usable_cores
from fastt2i.devices.free_memory import installed_memory
from fastt2i.files.user_cache import user_cache

PACKAGES = ("torch", "triton", "transformers", "numpy", "pillow", "safetensors", "tyro", "tensorboard", "matplotlib")
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")

Findings = dict[str, dict[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Examine this machine; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fastt2i doctor", description="Tell what would run on this machine, and what not."
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--times", action="store_true", help="print the times of operators that are known here")
    arguments = parser.parse_args(argv)
    findings = _times() if arguments.times else examine()
    if arguments.json:
        print(json.dumps(findings, indent=1))
    else:
        print("\n".join(_lines(findings)))
    return 0


def examine() -> Findings:
    """All findings, by section."""
    findings: Findings = {"versions": _versions(), "machine": _machine()}
    if importlib.util.find_spec("torch") is None:
        findings["operators"] = {"all": "cannot run: torch is not installed"}
    else:
        findings["devices"] = _devices()
        findings |= _operators()
        findings["times of operators"] = _tables()
    findings["loaders"] = _loaders()
    findings["language model"] = {"all-MiniLM-L6-v2": _language_model()}
    findings["folders"] = _folders()
    return findings


def _versions() -> dict[str, str]:
    versions = {"fastt2i": importlib.import_module("fastt2i").__version__, "python": platform.python_version()}
    versions |= {name: _version(name) or "not installed" for name in PACKAGES}
    versions["dali"] = next((f"{_version(n)} ({n})" for n in DALI if _version(n)), "not installed")
    versions["apex"] = _apex()
    return versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _apex() -> str:
    """NVIDIA's Apex and a package of that name on PyPI are two projects: only one has FusedAdam."""
    if importlib.util.find_spec("apex") is None:
        return "not installed"
    try:
        from apex.optimizers import FusedAdam  # noqa: F401
    except ImportError:
        return "the package installed is not NVIDIA Apex: it has no apex.optimizers.FusedAdam"
    return f"NVIDIA Apex {_version('apex') or ''}".strip()


def _machine() -> dict[str, str]:
    return {
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "processor": processor(),
        "cores": _cores(),
        "memory": _memory(),
    }


def _cores() -> str:
    quota = cpu_quota()
    return str(usable_cores()) + ("" if quota is None else f" (a quota of {quota:g} of {os.cpu_count()})")


def _memory() -> str:
    installed = installed_memory()
    return "unknown" if installed is None else f"{installed / 2**30:.1f} GiB"


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        capability = f"compute capability {gpu.major}.{gpu.minor}"
        devices[f"cuda:{number}"] = (
            f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {capability}, CUDA {torch.version.cuda}"
        )
    if not torch.cuda.is_available():
        devices["cuda"] = "none that torch sees"
    return devices


def _times() -> Findings:
    """For every device: where its table of times is, and each call with its implementations, fastest first."""
    from fastt2i.ops.dispatch.timing_cache import cache_path, times_of, versions

    findings: Findings = {}
    for device in _torch_devices():
        section: dict[str, Any] = findings.setdefault(
            f"times on {device}", {**versions(device), "table": str(cache_path(device))}
        )
        for call, times in times_of(device).items():
            timed = sorted((t, name) for name, t in times.items() if t is not None)
            left_out = {name: "left out: wrong, or cannot run" for name, t in times.items() if t is None}
            section[call] = {name: f"{t:.3f} ms" for t, name in timed} | left_out
    return findings


def _tables() -> dict[str, str]:
    """For every device: how many calls were timed, and where the table is."""
    from fastt2i.ops.dispatch.timing_cache import cache_path, times_of

    counts = {device: len(times_of(device)) for device in _torch_devices()}
    return {str(d): f"{count or 'no'} calls timed; the table is {cache_path(d)}" for d, count in counts.items()}


def _torch_devices() -> list[Any]:
    import torch

    return [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()


def _operators() -> Findings:
    """For every device and operator: each implementation, and the rule by which one is chosen."""
    from fastt2i.ops.dispatch.registry import example_call, implementations, operators

    findings: Findings = {}
    for device in _torch_devices():
        section = findings[f"operators on {device}"] = {}
        for op, rule in operators().items():
            section[op] = {"impl=None": rule}
            for name, reason in implementations(example_call(op, device)).items():
                section[op][name] = f"cannot run: {reason}" if reason else "would run"
    return findings


def _loaders() -> dict[str, str]:
    """What `auto` does, and each loader with its speed here."""
    if absent := [name for name in ("torch", "pillow") if not _version(name)]:
        return {"all": f"cannot run: {absent[0]} is not installed"}
    import torch

    from fastt2i.config import DataConfig
    from fastt2i.data.loaders.choose import measure_rates
    from fastt2i.data.loaders.dali import unavailable_reason
    from fastt2i.data.photographs import photographs_dataset
    from fastt2i.data.sampler import Sampler

    config = DataConfig()
    small = f"memory, where all decoded images fit in data.memory_mb {config.memory_mb}"
    if reason := unavailable_reason():
        return {"auto": f"{small}; else pillow", "pillow": "would run", "dali": f"cannot run: {reason}"}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    index = photographs_dataset(32, 500, 375)
    sampler = Sampler(index.caption_table(), batch_size=16, seed=0, flip=False)
    found = measure_rates(index, sampler, config, image_size=256, device=device)
    fastest = max(found, key=lambda name: found[name])
    return {
        "auto": f"{small}; else the faster one on the run's own images: {fastest} on those below",
        "pillow": f"would run: {found['pillow']:,.0f} img/s",
        "dali": f"would run: {found['dali']:,.0f} img/s, decoded on the {device.type.replace('cuda', 'gpu').upper()}",
        "measured on": f"JPEGs of 500 x 375 to 256 pixels, {config.workers} workers each",
    }


def _language_model() -> str:
    for package in ("torch", "tokenizers"):
        if importlib.util.find_spec(package) is None:
            return f"cannot be loaded: {package} is not installed"
    from fastt2i.text.language_model import find_language_model

    return f"from {find_language_model('all-MiniLM-L6-v2').description}"


def _folders() -> dict[str, str]:
    folders = {}
    for purpose, path in (("text features", user_cache("text")), ("runs", Path.cwd() / "runs")):
        existing = next(p for p in (path, *path.parents) if p.exists())
        usable = "can be written" if os.access(existing, os.W_OK) and existing.is_dir() else "cannot be written"
        folders[purpose] = f"{path} ({usable}, {shutil.disk_usage(existing).free / 2**30:.1f} GiB free)"
    kept = [file for file in user_cache("text").glob("*/*.npy") if file.is_file()]
    size = sum(file.stat().st_size for file in kept) / 2**30
    folders["text features"] += (
        f": {len({file.parent for file in kept})} sets of captions in {size:.2f} GiB; what is removed is made again"
    )
    return folders


def _lines(findings: Findings) -> Iterator[str]:
    for section, entries in findings.items():
        yield section
        for name, value in entries.items():
            if isinstance(value, dict):
                yield f"  {name}"
                yield from (f"    {key:14} {each}" for key, each in value.items())
            else:
                yield f"  {name:16} {value}"
        yield ""


if __name__ == "__main__":
    sys.exit(run(main))
