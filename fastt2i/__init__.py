"""Training text-to-image GANs, fast. `import fastt2i` is cheap: everything heavy is imported when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastt2i.pipeline import TextToImagePipeline

# Where a checkout has no symbolic links, the link to kernels/ is a file that holds its target.
if (Path(__file__).parent / "kernels").is_file():
    __path__.append(str(Path(__file__).parents[1]))

__version__ = "0.1.0"
__all__ = ["TextToImagePipeline", "__version__"]


def __getattr__(name: str) -> object:
    if name == "TextToImagePipeline":
        from fastt2i.pipeline import TextToImagePipeline

        return TextToImagePipeline
    raise AttributeError(f"module 'fastt2i' has no attribute {name!r}")
