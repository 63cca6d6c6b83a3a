"""Logs of a run: progress on the terminal, metrics.jsonl, sample grids, curves, TensorBoard."""

from __future__ import annotations

import errno
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from fastt2i.config import LogConfig
from fastt2i.engine.logging.run_directory import RunDirectory
from fastt2i.engine.signals import hang_up
from fastt2i.pictures.curves import save_curves
from fastt2i.pictures.grids import attention_sheet, sample_grid, variation_sheet
from fastt2i.pictures.pixels import to_pillow

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

#: Seconds between two progress lines where there is no terminal to draw a bar on.
LINE_SECONDS = 10.0
#: What the progress line shows of the losses, with short names.
SHOWN = {"d_adversarial": "D", "g_adversarial": "G", "g_region": "region", "g_sentence": "sentence"}


class NullLogger:
    """Logs nothing: for ranks other than 0."""

    def log_losses(self, step: int, values: Mapping[str, float]) -> None: ...

    def log_samples(self, step: int, images: Tensor, captions: Sequence[str], scores: Mapping[str, float]) -> None: ...

    def log_variations(self, step: int, images: Tensor, captions: Sequence[str]) -> None: ...

    def log_attention(
        self, step: int, images: Tensor, captions: Sequence[str], words: Sequence[Sequence[str]], attention: Tensor
    ) -> None: ...

    def log_evaluation(self, step: int, scores: Mapping[str, float], *, best: bool) -> None: ...

    def print(self, sentence: str) -> None: ...

    def close(self) -> None: ...


class RunLogger(NullLogger):
    """Logs a run on the terminal and in the run directory.

    Args:
        directory: of the run; lines of `metrics.jsonl` after `first_step` are dropped.
        config: what to write.
        first_step: steps already taken.
        steps: steps in all.
        scored: which captions are scored: `held-out` or `training`.
    """

    def __init__(self, directory: RunDirectory, config: LogConfig, *, first_step: int, steps: int, scored: str) -> None:
        self._directory = directory
        self._steps = steps
        self._scored = scored
        directory.rewind(first_step)
        self._metrics = directory.metrics.open("ab", buffering=0)
        self._writer = None
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(directory.tensorboard), purge_step=first_step + 1)
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            unit="step",
            disable=not self._on_terminal,
            dynamic_ncols=True,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            desc="training",
        )
        self._started, self._first_step, self._last_line = time.monotonic(), first_step, 0.0

    def log_losses(self, step: int, values: Mapping[str, float]) -> None:
        """Log losses and speed after `step` steps."""
        self._record(step, values)
        shown = "  ".join(f"{short} {values[name]:.2f}" for name, short in SHOWN.items() if name in values)
        rate = f"{values['images_per_second']:.0f} img/s"
        bad = f"  {values['quarantined']:.0f} bad images" if values.get("quarantined") else ""
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(f"{rate}  {shown}{bad}")
        now = time.monotonic()
        if not self._on_terminal and (now - self._last_line >= LINE_SECONDS or step == self._steps):
            self._last_line = now
            left = (now - self._started) / (step - self._first_step) * (self._steps - step)
            self.print(f"step {step}/{self._steps}  {rate}  {shown}{bad}  {tqdm.format_interval(left)} left")

    def log_samples(self, step: int, images: Tensor, captions: Sequence[str], scores: Mapping[str, float]) -> None:
        """Write the sample grid and the curves, and log scores after `step` steps."""
        grid = sample_grid(to_pillow(images), captions)
        path = self._directory.samples / f"step-{step:08d}.png"
        grid.save(path)
        if scores:
            self._record(step, scores)
        self._add_image("samples", grid, step)
        save_curves(list(self._directory.records()), self._directory.curves, self._scored)
        summary = "  ".join(f"{name.removeprefix('accuracy_')} {value:.3f}" for name, value in scores.items())
        self.print(
            f"step {step}/{self._steps}  samples in {path}"
            + (f"  {self._scored} captions: {summary}" if summary else "")
        )

    def log_variations(self, step: int, images: Tensor, captions: Sequence[str]) -> None:
        """Write the picture of several images (C, N, 3, S, S) of each of C captions."""
        sheet = variation_sheet([to_pillow(row) for row in images], captions)
        sheet.save(self._directory.samples / f"variations-{step:08d}.png")
        self._add_image("variations", sheet, step)

    def log_attention(
        self,
        step: int,
        images: Tensor,
        captions: Sequence[str],
        words: Sequence[Sequence[str]],
        attention: Tensor,
    ) -> None:
        """Write the picture of the attention of the keywords `words` of captions over images (N, 3, S, S).

        attention: (N, T, R), a row for each keyword, over a square grid of R regions.
        """
        side = math.isqrt(attention.shape[2])
        maps = attention.unflatten(2, (side, side)).float().cpu().numpy()
        sheet = attention_sheet(to_pillow(images), captions, words, maps)
        sheet.save(self._directory.samples / f"attention-{step:08d}.png")
        self._add_image("attention", sheet, step)

    def log_evaluation(self, step: int, scores: Mapping[str, float], *, best: bool) -> None:
        """Log the scores of an evaluation, and whether the model is the best so far and was kept."""
        self._record(step, {f"eval_{name}": value for name, value in scores.items()})
        save_curves(list(self._directory.records()), self._directory.curves, self._scored)
        shown = "  ".join(f"{name} {scores[name]:.4f}" for name in ("kid", "r_precision", "spread") if name in scores)
        kept = f"  the best so far: kept in {self._directory.model}" if best else ""
        self.print(f"step {step}/{self._steps}  evaluation: {shown}{kept}")

    def print(self, sentence: str) -> None:
        """Print a line without disturbing the progress bar; where nobody can read it any more, the run is to stop."""
        try:
            tqdm.write(sentence, file=sys.stdout)
            sys.stdout.flush()
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            hang_up(sys.stdout)

    def close(self) -> None:
        """Finish the progress bar and close the files."""
        self._bar.close()
        self._metrics.close()
        if self._writer:
            self._writer.close()

    def _add_image(self, name: str, picture: Image.Image, step: int) -> None:
        if self._writer:
            import numpy as np

            self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        self._metrics.write((json.dumps({"step": step, **values}) + "\n").encode())
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name.replace("_", "/", 1), value, step)
