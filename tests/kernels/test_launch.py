"""What kernels are told of the machine and of torch's settings."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import torch
from fastt2i.kernels.launch import convolution_precision
torch.backends.cudnn.allow_tf32 = True
print(convolution_precision() == "tf32")
torch.backends.cudnn.allow_tf32 = False
print(convolution_precision() == "tf32")
torch.backends.cudnn.conv.fp32_precision = "tf32"
print(convolution_precision() == "tf32")
torch.backends.cudnn.conv.fp32_precision = "ieee"
print(convolution_precision() == "tf32")
"""


def test_tf32_is_known_by_its_older_and_its_newer_name() -> None:
    """In a process of its own: who has set the newer name may not read the older one any more."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False", "True", "False"], done.stderr
