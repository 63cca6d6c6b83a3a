"""The model card: what a model folder says of itself."""

from __future__ import annotations

from fastt2i.models.pretrained import PretrainedModel

CARD = """\
---
library_name: fastt2i
pipeline_tag: text-to-image
---

# A text-to-image GAN trained with fastt2i

{size} x {size} pixels; the generator has {generator:.2f} M parameters, the discriminator {discriminator:.2f} M. The
language model is `{text}` (SHA-256 `{digest}`), frozen; it is not part of this folder.

```python
from fastt2i import TextToImagePipeline

pipeline = TextToImagePipeline.from_pretrained("{folder}")
pipeline(["{prompt}"], seed=0)[0].save("image.png")
```

## Training

{facts}

## Limits

The model draws what its training captions describe, and nothing else. The method follows patent publication
CN115619903A; whoever uses it checks their own rights to the method and to the training data.
"""


def parameter_count(module: object) -> int:
    """Trainable and frozen parameters of a module."""
    return sum(p.numel() for p in module.parameters())  # type: ignore[attr-defined]


def model_card(model: PretrainedModel, folder: str = "path/to/this/folder") -> str:
    """Markdown with the facts that the model carries."""
    prompt = next(iter(model.facts.get("example_prompts", [])), "a caption in the style of the training set")
    facts = "\n".join(
        f"- {name.replace('_', ' ')}: {value:.4g}"
        if isinstance(value, float)
        else f"- {name.replace('_', ' ')}: {value}"
        for name, value in model.facts.items()
        if not isinstance(value, list)
    )
    return CARD.format(
        size=model.config.image_size,
        generator=parameter_count(model.generator) / 1e6,
        discriminator=parameter_count(model.discriminator) / 1e6,
        text=model.text.model,
        digest=model.text_digest[:16],
        folder=folder,
        prompt=prompt.replace('"', "'"),
        facts=facts or "- unknown",
    )
