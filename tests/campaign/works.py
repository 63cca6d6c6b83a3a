"""What is done to each kind of work of this project: a program that writes, how it goes on, and what it leaves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastt2i.files.lock import HOLDER, LOCK
from tests.campaign.processes import Fault, Job, program, run
from tests.tiny_runs import run_options, write_language_model, write_model

Files = dict[str, bytes]
IMAGES = 60
PROMPTS = 100


@dataclass(frozen=True)
class Inputs:
    """What the works read."""

    language_model: Path
    model: Path
    data: Path
    """A folder of captioned images."""
    prompts: Path

    @classmethod
    def make(cls, folder: Path) -> Inputs:
        language_model = write_language_model(folder / "language-model")
        model = write_model(folder / "model", language_model)
        data, prompts = folder / "data", folder / "prompts.txt"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            program("data", "pack", "--to", "folder", "--limit", IMAGES, "--out", data, "--workers", 0)()
        captions = [json.loads(line)["text"][0] for line in (data / "metadata.jsonl").read_text().splitlines()]
        prompts.write_text("".join(f"{captions[n % len(captions)]}\n" for n in range(PROMPTS)))
        return cls(language_model, model, data, prompts)


@dataclass(frozen=True)
class Work:
    """Something that a program makes in a folder.

    Attributes:
        name: what it is, as "training".
        root: the folder, in which nothing else is.
        begin: does it from the beginning.
        go_on: does what is left of it after any end, however much is there.
        result: what it leaves in the end, without times.
        check: raises Fault where something in the folder is not whole at any moment.
    """

    name: str
    root: Path
    begin: Job
    go_on: Job
    result: Callable[[], Files]
    check: Callable[[], None] = lambda: None

    @property
    def environment(self) -> dict[str, str]:
        return {"XDG_CACHE_HOME": str(self.root / "cache")}

    def clear(self) -> None:
        """Empty the folder, which may be a mounted disk."""
        self.root.mkdir(parents=True, exist_ok=True)
        for entry in os.scandir(self.root):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)

    def undisturbed(self, log: Path) -> Files:
        """What it leaves where nothing disturbs it."""
        self.clear()
        run(self.begin, log, self.environment).succeeded()
        return self.result()

    def assert_result(self, wanted: Files) -> None:
        """Raise Fault unless it has left this."""
        found = self.result()
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if differing:
            raise Fault(f"{self.name} has left other bytes in {', '.join(differing)}")


def all_works(root: Path, inputs: Inputs) -> list[Work]:
    """Every kind of work, all in one folder, one at a time."""
    makers = (training, caching, packing_shards, packing_a_folder, verifying, evaluating, drawing)
    return [make(root, inputs) for make in makers]


def training(root: Path, inputs: Inputs, *options: object) -> Work:
    """A run of ten steps with a checkpoint after every second."""
    out = root / "run"
    steps = ["--train.steps", 10, "--log.samples-every", 5, "--log.variations", 2, "--log.attention", 1]
    data = ["--data", inputs.data, "--data.workers", 0, "--data.heldout", 0.2, "--engine.threads", 1]
    arguments = [*run_options(inputs.language_model, root / "text"), *data, *steps, *options, "--out", out]

    def go_on() -> int:
        return program("train", *arguments, *(["--resume"] if (out / "config.yaml").is_file() else []))()

    return Work(
        "training", root, program("train", *arguments), go_on, lambda: left_of_a_run(out), lambda: check_run(out)
    )


def left_of_a_run(out: Path) -> Files:
    """Every file of a run, without how long it took."""
    files = files_below(out)
    for name in [name for name in files if Path(name).name in ("metrics.jsonl", "state.json", "config.json")]:
        files[name] = _without_times(name, files[name])
    files.pop("curves.png", None)  # by time
    return files


def _without_times(name: str, content: bytes) -> bytes:
    lines = content.splitlines()
    if name.endswith("metrics.jsonl"):
        rows = [json.loads(line) for line in lines]
    else:  # its digest, in the last line of a state.json, is one of the times too
        rows = [json.loads(b"\n".join(lines[:-1] if name.endswith("state.json") else lines))]
    return json.dumps([_timeless(row) for row in rows], sort_keys=True).encode()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        # And when a process found that its steps are too few to compile them.
        return {k: _timeless(v) for k, v in value.items() if k not in ("seconds", "images_per_second", "compiled")}
    return value


def check_run(out: Path) -> None:
    """Raise Fault where a checkpoint or the model of a run is not whole, or holds what is not finite."""
    from fastt2i.engine.checkpoint import CheckpointStore
    from fastt2i.models.pretrained import load_pretrained

    _, damage = CheckpointStore(out / "checkpoints", keep=2).latest()
    if damage:
        raise Fault(f"a checkpoint is not whole: {damage[0]}")
    for path in sorted((out / "checkpoints").glob("step-*")):
        assert_finite(path)
    if (out / "model").exists():
        load_pretrained(out / "model")
        assert_finite(out / "model")


def assert_finite(folder: Path) -> None:
    """Raise Fault where a tensor in a folder is not finite."""
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if not tensor.isfinite().all():
                raise Fault(f"{file} holds values that are not finite in {name}")


def caching(root: Path, inputs: Inputs) -> Work:
    """The text features of some thousand captions."""

    def make() -> int:
        from fastt2i.text.cache import TextCache
        from fastt2i.text.encoder import TextEncoder

        captions = [f"a {size} circle at {place}" for size in range(40) for place in range(40)]
        TextCache.open(TextEncoder(str(inputs.language_model)), captions, root / "text", progress=False)
        return 0

    return Work("caching", root, make, make, lambda: files_below(root / "text", ".npy"))


def packing_shards(root: Path, inputs: Inputs) -> Work:
    options = ["--to", "webdataset", "--shard-samples", 6, "--image-size", 24, "--workers", 0]
    return _packing("packing shards", root, ["--data", inputs.data, *options])


def packing_a_folder(root: Path, inputs: Inputs) -> Work:
    return _packing(
        "packing a folder", root, ["--data", inputs.data, "--to", "folder", "--image-size", 24, "--workers", 0]
    )


def _packing(name: str, root: Path, options: list[object]) -> Work:
    out = root / "packed"
    pack = program("data", "pack", *options, "--out", out)
    return Work(name, root, pack, lambda: 0 if out.exists() else pack(), lambda: files_below(out))


def verifying(root: Path, inputs: Inputs) -> Work:
    """Some images of it are damaged. The exit status says that there are such."""
    out = root / "report.jsonl"
    verify = program("data", "verify", "--data", damaged_copy(inputs), "--workers", 0, "--out", out)

    def job() -> int:
        status = verify()
        return 0 if status == 1 else max(status, 1)

    return Work("verifying", root, job, job, lambda: files_below(root, ".jsonl"))


def damaged_copy(inputs: Inputs) -> Path:
    """The images, every tenth of them cut short."""
    folder = inputs.data.with_name("damaged")
    if not folder.exists():
        shutil.copytree(inputs.data, folder)
        for image in sorted(folder.glob("*.png"))[::10]:
            image.write_bytes(image.read_bytes()[:-200])
    return folder


def evaluating(root: Path, inputs: Inputs, out: str = "scores.json") -> Work:
    options = ["--data", inputs.data, "--split", "all", "--metrics", "r-precision,spread", "--images", 200]
    job = program("evaluate", "--model", inputs.model, *options, "--json", root / out)
    return Work("evaluating", root, job, job, lambda: files_below(root, ".json"))


def drawing(root: Path, inputs: Inputs) -> Work:
    job = program("generate", "--model", inputs.model, "--prompts", inputs.prompts, "--out", root / "drawn")
    return Work("drawing", root, job, job, lambda: files_below(root / "drawn"))


def files_below(folder: Path, suffix: str = "") -> Files:
    """The files below a folder, which hold no leftovers of what has ended. The cache is not among them."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.name in (LOCK, HOLDER) or path.suffix == ".lock" or parts[0] == "cache":
            continue
        if any(part.startswith(".") for part in parts):
            raise Fault(f"{path} is left over")
        if path.is_file() and path.name.endswith(suffix):
            found["/".join(parts)] = path.read_bytes()
    return found
