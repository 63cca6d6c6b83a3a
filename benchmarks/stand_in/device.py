"""The device: a small library that is preloaded into the CPU build of torch, and answers for what torch asks of a GPU.

A program calls `ensure_device()` before it imports torch. Where torch sees a real GPU, nothing is changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path
from typing import Any

from fastt2i.errors import UserError
from fastt2i.files.user_cache import user_cache

SOURCE = Path(__file__).with_name("guard.cpp")
#: The environment variable by which a process that was started anew knows that the library is in it.
PRELOADED = "FASTT2I_STAND_IN"


def is_real() -> bool:
    """Whether torch sees a GPU, and not the stand-in for one."""
    if _torch_version()["cuda"] is None:
        return False
    import torch

    return torch.cuda.is_available()


def unavailable_reason() -> str | None:
    """Why there can be neither a GPU nor a stand-in for one; None if there can."""
    if is_real():
        return None
    if _torch_version()["cuda"] is not None:
        return "this build of torch is one for GPUs and sees none; the stand-in for a GPU needs torch's CPU build"
    return None if shutil.which("g++") else "there is no g++, which the stand-in for a GPU is compiled with (2 s)"


def ensure_device() -> None:
    """Have a CUDA device, real or not; the process is started anew with the library preloaded where it is not.

    Raises:
        UserError: there is no compiler, or this build of torch cannot take the library.
    """
    reason = unavailable_reason()
    if reason:
        raise UserError(reason)
    if is_real():
        return
    if PRELOADED not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], preloaded_environment())
    os.environ.pop("LD_PRELOAD", None)  # compilers and others that this process starts need it not
    from benchmarks.stand_in.answers import answer_for_a_gpu

    answer_for_a_gpu()


def preloaded_environment() -> dict[str, str]:
    """The environment of a process that has the library in it from its beginning."""
    return os.environ | {"LD_PRELOAD": str(_library()), PRELOADED: "1", "PYTHONUNBUFFERED": "1"}


def _torch_home() -> Path:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise UserError("torch is not installed; pip install fastt2i brings it")
    return Path(spec.origin).parent


def _torch_version() -> dict[str, Any]:
    """What torch/version.py says; importing torch takes seconds, and would come before the library."""
    return run_path(str(_torch_home() / "version.py"))


def _library() -> Path:
    """Compiled once for each version of torch and kept in the user's cache."""
    version, home = _torch_version()["__version__"], _torch_home()
    digest = hashlib.sha256(f"{SOURCE.read_text()}\n{home}\n{version}\n{sys.version}".encode()).hexdigest()
    library = user_cache("stand-in") / f"{digest[:16]}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = [
            "g++",
            str(SOURCE),
            "-o",
            str(made),
            "-shared",
            "-fPIC",
            "-O1",
            "-std=c++20",
            f"-I{home / 'include'}",
        ]
        libraries = [f"-L{home / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
        done = subprocess.run([*command, *libraries], capture_output=True, text=True)
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-300:])
            raise UserError(f"the stand-in for a GPU does not compile with torch {version}: {said}")
        made.replace(library)
    return library
