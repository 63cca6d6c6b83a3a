"""Each learner's clock has its own steps and nothing else, and the peer takes the engine's inputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cases import bench_learning
from benchmarks.cases.baselines import dfgan
from benchmarks.cases.bench_learning import DFGAN, Learner, Point, save_picture
from benchmarks.cases.training_step import SENTENCE, make_inputs
from fastt2i.presets import preset


def test_the_clock_has_steps_and_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken = [0.0], []
    monkeypatch.setattr(bench_learning, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def spend(seconds: float) -> dict[str, float]:
        now[0] += seconds
        return {"accuracy_all": now[0]}

    learner = Learner(lambda inputs, step: (spend(2.0), taken.append(step)), iter(range(99)), lambda: spend(50.0), 16)
    learner.learn(5.0)
    learner.learn(0.0)
    assert taken == [0, 1, 2, 3]
    assert [(point.seconds, point.images) for point in learner.curve] == [(6.0, 48), (8.0, 64)]
    assert learner.curve[0].scores == {"accuracy_all": 56.0}


def test_the_peer_learns_from_the_engines_inputs() -> None:
    config = preset("demo")
    config.model = replace(config.model, noise_dim=dfgan.NOISE)
    config.train = replace(config.train, batch_size=2)
    inputs, size = make_inputs(config, torch.device("cpu")), config.model.image_size
    peer = DFGAN(size, SENTENCE, torch.device("cpu"))
    before = peer(inputs.text.sentence, inputs.noise).images
    peer.take(inputs, 0)
    after = peer(inputs.text.sentence, inputs.noise).images
    assert after.shape == (2, 3, size, size) and torch.isfinite(after).all() and not torch.equal(before, after)


def test_curves_over_the_clock_and_over_images_are_one_picture(tmp_path: Path) -> None:
    points = [Point(10.0 * n, 320 * n, {"accuracy_all": 0.1 * n, "spread_of_real": 0.5}) for n in (1, 2)]
    save_picture({"ours": points, "DF-GAN": points[:1]}, tmp_path / "learning.png")
    assert (tmp_path / "learning.png").read_bytes().startswith(b"\x89PNG")
