"""Training text-to-image GANs, fast. `import fastt2i` is cheap: everything heavy is imported when asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastt2i.pipeline import TextToImagePipeline

__version__ = "0.1.0"
__all__ = ["TextToImagePipeline", "__version__"]


def __getattr__(name: str) -> object:
    if name == "TextToImagePipeline":
        from fastt2i.pipeline import TextToImagePipeline

        return TextToImagePipeline
    raise AttributeError(f"module 'fastt2i' has no attribute {name!r}")
