"""What programs send and get: the types that requests are checked against and that `/openapi.json` is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

LONGEST_PROMPT = 2000
Prompt = Annotated[str, Field(max_length=LONGEST_PROMPT)]


class GenerateBody(BaseModel):
    """What to draw, and how."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Prompt = Field(description="What the images show.", examples=["a small red circle"])
    num: int = Field(1, description="How many images.")
    seed: int = Field(0, description="Seed of the noise: the same seed gives the same images.")
    truncation: float = Field(1.0, description="Factor of the noise, 0 to 2: below 1 images are more typical.")
    best_of: int | None = Field(None, description="Draw so many, and keep the `num` that score highest.")
    negative_prompt: Prompt = Field("", description="With best_of: a match with this is taken off the score.")
    attention: bool = Field(False, description="Also tell where each keyword of the prompt looks.")


class GenerateAnswer(BaseModel):
    """Images, and what is known of them."""

    images: list[str] = Field(description="PNG files in base64; prompt, seed and model stand in them.")
    scores: list[float] = Field(description="The discriminator's logit of each image under the prompt.")
    numbers: list[int] = Field(description="Place of each image among the candidates that were drawn.")
    keywords: list[str] = Field([], description="Keywords of the prompt, where attention was asked for.")
    attention: list[list[list[list[float]]]] = Field(
        [], description="For each image and keyword a map (rows of cells) that sums to 1."
    )
    notes: list[str] = Field(description="What keeps the model from following the prompt.")
    model: str = Field(description="SHA-256 of the generator's weights.")


class ErrorAnswer(BaseModel):
    """What is wrong, and what would be right, in one sentence."""

    error: str


class Health(BaseModel):
    """That the server answers, and how many requests wait."""

    status: str
    model: str
    waiting: int


class Example(BaseModel):
    """A prompt with an image of it."""

    prompt: str
    image: str


class About(BaseModel):
    """What the page tells of the model, and what may be asked for."""

    name: str
    image_size: int
    model: str
    facts: dict[str, Any]
    card: str
    max_num: int
    max_candidates: int
    examples: list[Example]
