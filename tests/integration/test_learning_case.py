"""The engine and the peer learn from one set in turns, and both are scored on its held-out captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.cases.bench_learning import learn_in_turns, save_picture
from fastt2i.presets import preset


def test_both_learn_in_turns(captioned_folder: Callable[..., Path], language_model: Path, tmp_path: Path) -> None:
    config = preset("demo")
    config.data = replace(config.data, path=str(captioned_folder(16)), heldout=0.5)
    config.text = replace(config.text, model=str(language_model), cache_dir=str(tmp_path / "cache"))
    config.train = replace(config.train, batch_size=2)
    config.model = replace(
        config.model, generator_channels=(4,) * 4, discriminator_channels=(4,) * 4, region_dim=8, global_dim=8
    )
    found = learn_in_turns(config, 1 / 600, tmp_path / "run")
    assert list(found) == ["ours", "DF-GAN"]
    for learner in found.values():
        assert learner.seconds >= 0.1 and learner.curve[-1].images == 2 * learner.steps
        scores = learner.curve[-1].scores
        assert scores["spread"] > 0 and "kid" in scores and 0 <= scores["retrieval_r10"] <= 1
    save_picture({name: learner.curve for name, learner in found.items()}, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").stat().st_size > 1000
