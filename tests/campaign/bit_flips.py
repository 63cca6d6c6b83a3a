"""Flipped bits and cut files in what programs find of their own: checkpoints, caches, indices, model folders.

What is damaged is found and named, and an earlier one is used where there is one; or it is harmless, as what is left at
the end shows, byte for byte. Of a run that is the model; its pictures and `metrics.jsonl` are read by people alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastt2i import cli
from fastt2i.data.tools import pack_shards
from fastt2i.engine.execution.step_runner import StepRunner
from fastt2i.engine.scoring.feature_store import FeatureStore
from fastt2i.text.encoder import TextEncoder
from tests.campaign.parts import Outcome, Part
from tests.campaign.processes import Fault, patch_call, program, run
from tests.campaign.works import (
    Files,
    Inputs,
    Work,
    caching,
    check_run,
    evaluating,
    packing_shards,
    training,
    verifying,
)


@dataclass(frozen=True)
class Case:
    """Files that a program finds of its own.

    Attributes:
        work: makes them with `begin`, and reads them with `go_on`.
        patterns: the files, from the work's folder.
    """

    name: str
    work: Work
    patterns: tuple[str, ...]


class BitFlips(Part):
    name, unit, planned, share = "flips", "damaged file", 300, 0.12

    def prepare(self, folder: Path) -> None:
        self._folder, self._log = folder, folder / "output.txt"
        self._cases = all_cases(folder / "work", Inputs.make(folder / "inputs"))
        self._whole: dict[str, Files] = {}
        for case in self._cases:
            case.work.clear()
            run(case.work.begin, self._log, case.work.environment).succeeded()
            shutil.copytree(case.work.root, self._snapshot(case), symlinks=True)
            if not _files(case, self._snapshot(case)):
                raise Fault(f"there is nothing to damage for {case.name}")
            run(case.work.go_on, self._log, case.work.environment).succeeded()
            self._whole[case.name] = case.work.result()

    def trial(self, number: int, moments: random.Random) -> Outcome:
        case = self._cases[number % len(self._cases)]
        case.work.clear()
        # With its times: what is kept counts only while a file's time of change is that of its record.
        shutil.copytree(self._snapshot(case), case.work.root, symlinks=True, dirs_exist_ok=True)
        file = moments.choice(_files(case, case.work.root))
        how = damage(file, moments)
        name = str(file.relative_to(case.work.root))
        try:
            kind = self._outcome(case, file)
        except Fault as fault:
            raise Fault(f"{case.name}, {name}, {how}: {fault}") from fault
        return Outcome(1, Counter({f"{case.name}: {kind}": 1}))

    def _outcome(self, case: Case, file: Path) -> str:
        ended = run(case.work.go_on, self._log, case.work.environment)
        folder = file.parent.name.removeprefix(".").removesuffix(".partial")
        named = any(word in ended.output for word in (file.name, f"{folder}/", f"{folder} "))
        if ended.status:
            ended.told()
            if not named:
                raise Fault(f"the sentence does not name it: {ended.tail()}")
            return "refused and named"
        ended.succeeded()
        case.work.check()
        if (named and "warning" in ended.output) or "settings changed since then" in ended.output:
            return "named, and gone on with what is whole"
        case.work.assert_result(self._whole[case.name])
        return "made anew or harmless"

    def _snapshot(self, case: Case) -> Path:
        return self._folder / f"snapshot-{case.name.replace(' ', '-')}"


def all_cases(root: Path, inputs: Inputs) -> list[Case]:
    resumed = Work(
        "resuming",
        root,
        _dying(training(root, inputs, "--train.steps", 8), StepRunner, "__call__", 5).begin,
        program("train", "--out", root / "run", "--resume"),
        lambda: _weights(root / "run" / "model"),
        lambda: check_run(root / "run"),
    )
    rows = _reopened(caching(root, inputs))
    begun = _dying(rows, TextEncoder, "__call__", 3)
    drawn = Work(
        "drawing",
        root,
        lambda: 0 if shutil.copytree(inputs.model, root / "model") else 1,
        program("generate", "--model", root / "model", "--prompt", "a red circle", "--num", 2, "--out", root / "a.png"),
        lambda: {"a.png": (root / "a.png").read_bytes()},
    )
    scored = _dying(evaluating(root, inputs), FeatureStore, "save", 3)
    return [
        Case("checkpoint", resumed, ("run/checkpoints/*/*",)),
        Case("run", resumed, ("run/config.yaml", "run/metrics.jsonl", "run/.lock*", "run/quarantine.jsonl")),
        Case("cache of text features", rows, ("text/[!.]*/*",)),
        Case(
            "begun cache of text features",
            begun,
            ("text/.*/*",),
        ),
        Case("model folder", drawn, ("model/*.json", "model/*.safetensors")),
        Case("features of an evaluation", scored, ("cache/fastt2i/evaluation/*/*/*",)),
        Case("index of shards", _read_shards(root, inputs), ("packed/.*.index.json",)),
        Case("packed shards", _verified_shards(root, inputs), ("packed/*.tar", "packed/manifest.json")),
        Case("begun shards", _dying(packing_shards(root, inputs), pack_shards, "_finish", 4), (".packed.partial/*",)),
        Case("journal of verifying", verifying(root, inputs), ("cache/fastt2i/verify/*.journal",)),
    ]


def damage(file: Path, moments: random.Random) -> str:
    """Damage a file as disks and copies do; returns how. It keeps its time of change."""
    content, status = bytearray(file.read_bytes()), file.stat()
    place = moments.randrange(len(content)) if content else 0
    how = moments.choice(["a bit", "a bit", "a bit", "a byte", "a block of zeros", "cut off"]) if content else "grown"
    if how == "a bit":
        content[place] ^= 1 << moments.randrange(8)
    elif how == "a byte":
        content[place] ^= moments.randrange(1, 256)
    elif how == "a block of zeros":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif how == "cut off":
        del content[place:]
    else:
        content += b"\0"
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"{how} at {place}"


def _files(case: Case, root: Path) -> list[Path]:
    return [path for pattern in case.patterns for path in sorted(root.glob(pattern)) if path.is_file()]


def _weights(model: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(model.glob("*.safetensors"))}


def _reopened(work: Work) -> Work:
    """The rows of a cache, as they are where it is opened again."""
    out = work.root / "rows"

    def read() -> int:
        import torch

        from fastt2i.text.cache import TextCache

        opened: list[TextCache] = []
        open_cache = TextCache.open

        def keep(*arguments: object, **named: object) -> TextCache:
            opened.append(open_cache(*arguments, **named))  # type: ignore[arg-type]
            return opened[0]

        TextCache.open = keep  # type: ignore[method-assign, assignment]
        status = work.go_on()
        rows = opened[0].rows(torch.arange(len(opened[0])))
        out.write_text(_digest(*(tensor.numpy().tobytes() for tensor in rows)))
        return status

    return Work(work.name, work.root, work.begin, lambda: cli.run(read), lambda: {"rows": out.read_bytes()})


def _read_shards(root: Path, inputs: Inputs) -> Work:
    """What a loader gets of shards with an index."""
    out = root / "samples"

    def read() -> int:
        from fastt2i.data.open import open_dataset

        dataset = open_dataset(str(root / "packed"), image_size=32, split="all")
        samples = [[key, list(captions)] for key, captions in dataset]
        out.write_text(_digest(json.dumps(samples).encode(), *map(dataset.read, range(len(dataset)))))
        return 0

    pack = packing_shards(root, inputs).begin
    return Work(
        "reading shards", root, lambda: pack() or read(), lambda: cli.run(read), lambda: {"samples": out.read_bytes()}
    )


def _verified_shards(root: Path, inputs: Inputs) -> Work:
    verify = program("data", "verify", "--data", root / "packed", "--workers", 0, "--out", root / "report.jsonl")

    def named() -> int:
        """Status 1 says that the report names something."""
        status = verify()
        if status == 1:
            print(f"warning: {(root / 'report.jsonl').read_text()}")
        return 0 if status == 1 else status

    def result() -> Files:
        return {"report": (root / "report.jsonl").read_bytes()}

    return Work("verifying shards", root, packing_shards(root, inputs).begin, named, result)


def _dying(work: Work, owner: Any, name: str, call: int) -> Work:
    """The work, ended without a word where it calls a function for this time."""

    def die(_: object, __: object) -> None:
        os._exit(0)

    def begin() -> int:
        patch_call(owner, name, call, before=die)
        return work.begin()

    return replace(work, begin=begin)


def _digest(*contents: bytes) -> str:
    return hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
