"""A loader for sets of any size: DALI decodes, cuts, resizes and mirrors, on the GPU where there is one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastt2i.data.dataset import Dataset, Problem
from fastt2i.data.decode import Decoder
from fastt2i.data.loaders.dali_source import DaliSource, Fed, Meta, OneByOne, Report, SampleInfo
from fastt2i.data.loaders.loader import Batch, Loader, cut_batch
from fastt2i.data.loaders.quarantine import Quarantine, TooManyBad, with_samples
from fastt2i.data.loaders.worker_signals import interrupts_afterwards
from fastt2i.data.loaders.worker_start import starting_workers
from fastt2i.data.sampler import Sampler
from fastt2i.errors import UserError
from fastt2i.files.io_errors import SystemIOError


def unavailable_reason() -> str:
    """Why DALI cannot be used here, with what to do about it; empty where it can."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "NVIDIA DALI is not installed; pip install 'fastt2i[dali]' (CUDA 13 or no GPU) or 'fastt2i[dali-cuda12]'"
    try:
        import_module("nvidia.dali")
    except Exception as error:  # a library that is missing, or python -OO, which takes the docstrings that it adds to
        return f"NVIDIA DALI cannot be imported ({type(error).__name__}: {error})"
    return ""


class DaliLoader(Loader):
    """Decodes each image anew whenever its turn comes, a batch at a time.

    The pixels are Pillow's but for rounding: decoding on a CPU gives the same ones, and the same cubic filter resizes
    them without rounding and clipping to 8 bits between rows and columns.
    """

    prefetch = 2
    """Steps that DALI is ahead."""

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sampler,
        *,
        image_size: int,
        threads: int,
        max_bad_fraction: float,
        start_step: int = 0,
        known: Sequence[Problem] = (),
        readers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        """threads: of DALI's on the CPU. readers: processes that read files; 0 reads in this one. device: where the
        batches go; the CPU if None. Raises UserError: DALI is not installed.
        """
        if reason := unavailable_reason():
            raise UserError(f"the loader `dali` cannot run: {reason}")
        self.quarantine = Quarantine(dataset, max_bad_fraction, known, shared=sampler.world_size > 1)
        self._decode = Decoder.of(dataset, image_size)
        self._count = len(dataset)
        self._sampler = sampler
        self._step = start_step
        self._threads = max(threads, 1)
        self._readers = readers
        self._device = torch.device("cpu") if device is None else device
        self._bad: set[int] = set()
        self._refused: set[int] = set()
        self._closed = False
        self._pipeline: Any = self._start(start_step)

    def __next__(self) -> Batch:
        if self._closed:
            raise StopIteration
        images, metas, reports = self._run()
        samples = metas[:, Meta._fields.index("sample")].astype(np.int64)
        failures = [failure for report in reports for failure in report.failures]
        self._bad.update(sample for sample, _ in failures)
        self.quarantine.note(samples[samples >= 0], failures)
        for report in reports:
            if report.error:
                fault = report.of_the_machine
                raise SystemIOError(report.error) if fault else TooManyBad(report.error, self.quarantine.problems)
        plan = with_samples(self._sampler.plan(self._step), samples, self._sampler.positions(self._step), self._sampler)
        transposed = metas[:, Meta._fields.index("transpose")].nonzero()[0]
        if len(transposed):
            places = torch.from_numpy(transposed).to(images.device)
            images[places] = images[places].transpose(1, 2)
        self._step += 1
        return cut_batch(images, plan, self._sampler.margin)

    def close(self) -> None:
        self._closed = True
        self._stop()

    def _run(self) -> tuple[Tensor, NDArray[np.int32], list[Report]]:
        """This step's images, uint8 (B, S, S, 3), with their metas (B, len(Meta)) and reports.

        An image that DALI cannot decode fails the whole batch, and with some executors all that follow. Then each
        image of the step is tried alone, the culprits are left to Pillow, and the step is run again by a new pipeline:
        the batch that comes out does not depend on what was known before.
        Raises UserError: DALI fails for another reason.
        """
        for_nothing = 0
        while True:
            if self._pipeline is None:
                self._pipeline = self._start(self._step)
            try:
                images, metas, reports = _outputs(self._pipeline, self._device)
            except RuntimeError as error:
                self._stop()
                culprits = self._culprits()
                for_nothing += not culprits
                if for_nothing > 1:
                    raise UserError(
                        f"DALI fails at step {self._step} with images that it can decode one by one "
                        f"({_told(error)}); --data.loader pillow goes without it"
                    ) from error
                self._refused |= culprits
                continue
            if (metas[:, Meta._fields.index("step")] == self._step).all():
                return images, metas, reports
            self._stop()  # it lost a step

    def _culprits(self) -> set[int]:
        """The samples of this step that DALI cannot decode."""
        source, size = self._source(self._step), len(self._sampler.positions(self._step))
        alone = self._build(OneByOne(source, self._step, size), batch_size=1, readers=0, prefetch=1)
        culprits = set()
        for place in range(size):
            sample = Meta(*source.sample(self._step, place)[1].tolist()).sample
            try:
                _outputs(alone, self._device)
            except RuntimeError:
                culprits.add(sample)
        return culprits

    def _start(self, step: int) -> Any:
        return self._build(self._source(step), len(self._sampler.positions(step)), self._readers, self.prefetch)

    def _source(self, step: int) -> DaliSource:
        return DaliSource(
            self._decode,
            self._count,
            self._sampler,
            step,
            bad=frozenset(self._bad),
            refused=frozenset(self._refused),
        )

    def _build(self, source: Callable[[SampleInfo], Fed], batch_size: int, readers: int, prefetch: int) -> Any:
        # Not by `import`: its types are known to mypy where it is installed, in part and wrongly.
        fn, types = (import_module(f"nvidia.dali.{name}") for name in ("fn", "types"))
        on_gpu = self._device.type == "cuda"
        pipeline = import_module("nvidia.dali").Pipeline(
            batch_size=batch_size,
            num_threads=self._threads,
            device_id=_number(self._device) if on_gpu else None,
            prefetch_queue_depth=prefetch,
            py_num_workers=max(readers, 1),
            py_start_method="spawn",  # a fork copies the locks of torch's threads in whatever state they are
        )
        size = self._decode.image_size
        with pipeline:
            content, meta, report = fn.external_source(
                source,
                num_outputs=3,
                batch=False,
                parallel=readers > 0,
                prefetch_queue_depth=prefetch if readers else None,
                dtype=[types.UINT8, types.INT32, types.UINT8],
                ndim=[1, 1, 1],
            )
            images = fn.decoders.image_slice(
                content,
                device="mixed" if on_gpu else "cpu",
                start=meta[0:2],
                shape=meta[2:4],
                axes=(0, 1),
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,  # as Pillow does; on a CPU it always is so
            )
            interpolation = fn.cast(meta[7], dtype=types.INTERP_TYPE)
            images = fn.resize(images, size=(size, size), interp_type=interpolation, antialias=True)
            images = fn.flip(images, horizontal=meta[4], vertical=meta[5])
            pipeline.set_outputs(images, meta, report)
        with starting_workers():
            pipeline.build()
        return pipeline

    def _stop(self) -> None:
        # Dropping it ends its readers too, but not while the traceback of an interrupt refers to it.
        if (readers := getattr(self._pipeline, "_py_pool", None)) is not None:
            readers.close()
        self._pipeline = None


def _outputs(pipeline: Any, device: torch.device) -> tuple[Tensor, NDArray[np.int32], list[Report]]:
    """What comes out of a run, copied: the buffers are DALI's."""
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    with interrupts_afterwards():
        images, metas, reports = pipeline.run(stream)
    if stream is not None:
        pixels = torch.from_dlpack(images.as_tensor()).clone()
    else:
        # Not by torch, whose threads would wait for the cores that DALI's are busy on.
        pixels = torch.from_numpy(np.array(images.as_tensor()))
    return pixels, np.array(metas.as_tensor()), [Report.unpack(np.array(report)) for report in reports]


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _told(error: RuntimeError) -> str:
    """The line of DALI's message that says what happened."""
    lines = str(error).partition("encountered:")[2].split("\n") or [str(error)]
    return next((line.strip() for line in lines if line.strip()), "it does not say why")
