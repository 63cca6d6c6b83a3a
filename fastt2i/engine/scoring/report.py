"""Scores for people: each with its name, and how it was computed."""

from __future__ import annotations

from fastt2i.engine.scoring.model_evaluation import Result

_R_PRECISION = """\
r_precision: share of images whose own caption is the nearest of {candidates}: its own and others drawn at random from
{others}, by the cosine of the image's global feature and the projected sentence
feature, both from the discriminator that was trained with the generator. The generator was trained against these
features, so compare figures of one training set-up only. r_precision_real is the same for the real images: what the
discriminator itself gets right."""
_OTHERS = {"any": "the same set", "other-class": "those of other classes"}
_ATTRIBUTES = """\
accuracy_*: share of images in which the colour, shape, size, position and background read back from the pixels are
those of the caption; accuracy_all: all five together."""
_SPREAD = """\
spread: how much images of one caption differ, drawn from several noises: the standard deviation over the images, a mean
over captions and pixels, in levels of 255. spread_of_real: the mean absolute difference of two images of a caption as a
multiple of that of two real images of one caption (or class), where the data has such."""
_KID = """\
kid: KID ({extractor}), the squared maximum mean discrepancy of features, a mean over {kid_subsets} subsets of \
{kid_subset_size}
images; kid_std: its standard deviation over subsets. Lower is better; equal sets have 0."""
_PRECISION = """\
precision, recall ({extractor}): shares of generated images near a real one, and of real images near a generated
one; near is within the distance of that one's neighbour number {neighbour}."""
_RETRIEVAL = """\
retrieval_r1, retrieval_r10 ({extractor}): shares of generated images to which the real image of their caption
is the nearest of all {real_images} real ones, or among the ten nearest; retrieval_rank: the median of its rank."""
_FRECHET = """\
{name}: the Fréchet distance of features of {inception}. Lower is better."""
_CLIP = """\
clip: 100 times the mean cosine of image and caption by CLIP; clip_real: of the real images."""


def explain(result: Result) -> str:
    """The scores, a line each, and what they mean."""
    scores, protocol = result
    counts = ("images", "real_images", "undecodable_images", "different_captions")
    lines = [f"{name:20} {protocol[name]}" for name in counts]
    lines += [f"{name:20} {value:.4f}" for name, value in scores.items()]
    return "\n".join([*lines, "", *_notes(result)])


def _notes(result: Result) -> list[str]:
    scores, protocol = result
    notes = []
    if frechet := [name for name in scores if name == "fid" or name.startswith("fd-")]:
        notes.append(_FRECHET.format(name=frechet[0], **protocol))
    if "kid" in scores:
        notes.append(_KID.format(**protocol))
    if "precision" in scores:
        notes.append(_PRECISION.format(**protocol))
    if "retrieval_r1" in scores:
        notes.append(_RETRIEVAL.format(**protocol))
    if "clip" in scores:
        notes.append(_CLIP)
    if "r_precision" in scores:
        notes.append(_R_PRECISION.format(others=_OTHERS[protocol["negatives"]], **protocol))
    if "spread" in scores:
        notes.append(_SPREAD)
    return notes + ([_ATTRIBUTES] if "accuracy_all" in scores else [])
