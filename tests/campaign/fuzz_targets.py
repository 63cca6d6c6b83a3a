"""The readers that are fuzzed, with what is given to each."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastt2i.config import Config
from fastt2i.data.captions import file_captions
from fastt2i.data.dataset import Dataset
from fastt2i.data.decode import BadImage, Decoder
from fastt2i.data.open import open_dataset
from fastt2i.data.sources import parquet
from fastt2i.data.sources.helpers import parquet_footers
from fastt2i.data.sources.helpers.pickles import read_integers, read_strings
from fastt2i.errors import UserError
from fastt2i.files.atomic import sha256
from fastt2i.files.sealed import sealed, unsealed
from fastt2i.models.pretrained import load_pretrained
from fastt2i.text.prompts import read_prompts
from tests.campaign import fuzz_inputs
from tests.campaign.fuzzed_files import Target
from tests.layouts import make_coco, make_cub, make_parquet, shard_members, shown, write_tar
from tests.tiny_runs import write_language_model, write_model


def all_targets(folder: Path) -> list[Target]:
    """The readers. folder: for what their inputs are made from."""
    parquet.footer_damages = _footer_damages
    tar, index = _tars(folder)
    model = write_model(folder / "model", write_language_model(folder / "language-model"))
    weights, config = (model / "generator.safetensors").read_bytes(), json.loads((model / "config.json").read_text())
    tables = [path.read_bytes() for path in sorted(Path(make_parquet(folder / "parquet")).rglob("*.parquet"))]
    coco = json.loads(next(Path(make_coco(folder / "coco")).rglob("captions_train*.json")).read_text())
    cub = Path(make_cub(folder / "cub"))
    names = (cub / "train" / "filenames.pickle").read_bytes()
    classes = (cub / "train" / "class_info.pickle").read_bytes()
    headers = [place for start in range(0, len(tar[0]), 512) for place in (start + 100, start + 124, start + 156)]
    return [
        Target("configurations", 30_000, fuzz_inputs.configurations(), lambda _, text: Config.from_yaml(text, "it")),
        Target("captions", 28_000, fuzz_inputs.captions(), _read_captions),
        Target("jsonl", 12_000, fuzz_inputs.jsonl(), _metadata_reader("metadata.jsonl")),
        Target("csv", 8_000, fuzz_inputs.csv(), _metadata_reader("metadata.csv")),
        Target("tars", 9_000, fuzz_inputs.changed_bytes(tar, headers), _read_tar),
        Target("indices", 2_000, fuzz_inputs.changed_json(json.loads(index)), _index_reader(tar[0])),
        Target("tensors", 3_000, fuzz_inputs.safetensors(weights), _weights_reader(model)),
        Target("model folders", 2_000, fuzz_inputs.changed_json(config), _config_reader(model)),
        Target("parquet", 2_000, fuzz_inputs.changed_bytes(tables, range(-300, 0)), _read_parquet),
        Target("coco", 2_000, fuzz_inputs.changed_json(coco), _read_coco),
        Target("pickles", 2_000, fuzz_inputs.changed_bytes([names, classes]), _read_pickle),
    ]


def _read_all(dataset: Dataset) -> None:
    """Every image, as loaders decode it."""
    decode = Decoder.of(dataset, 8)
    for sample in range(len(dataset)):
        try:
            decode(sample)
        except (BadImage, OSError):
            continue  # what a run leaves out


def _read_captions(folder: Path, content: bytes) -> None:
    for line in file_captions(content).lines:
        assert 0 < len(line) <= 2000 and not any(c < " " or "\x7f" <= c < "\xa0" for c in line), line
        line.encode()  # tokenizers take what is UTF-8
    (folder / "prompts.txt").write_bytes(content)
    list(read_prompts(folder / "prompts.txt"))


def _metadata_reader(name: str) -> Callable[[Path, bytes], None]:
    image = shown(3, "PNG")

    def read(folder: Path, content: bytes) -> None:
        (folder / "sub").mkdir()
        for path in ("a.png", "b.jpg", "sub/c.png"):
            (folder / path).write_bytes(image)
        (folder / "out.png").symlink_to(folder.parent / "secret.png")
        (folder / name).write_bytes(content)
        dataset = open_dataset(str(folder), "folder", image_size=8, split="all")
        assert "secret" not in " ".join(dataset.keys) and "out.png" not in dataset.keys
        _read_all(dataset)

    return read


def _tars(folder: Path) -> tuple[list[bytes], bytes]:
    """Tars of each format, and the index of the first."""
    members = [member for number in range(2) for member in shard_members(number)]
    odd = [(f"{'long/' * 60}{name}", content) for name, content in members]
    formats = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    tars = [write_tar(folder / "a.tar", members, tarfile.USTAR_FORMAT)]
    tars += [write_tar(folder / f"{number}.tar", odd if number else members, own) for number, own in enumerate(formats)]
    open_dataset(str(tars[0]), image_size=8)
    return [path.read_bytes() for path in tars], unsealed((folder / ".a.tar.index.json").read_bytes())


def _read_tar(folder: Path, content: bytes) -> None:
    (folder / "a.tar").write_bytes(content)
    _read_all(open_dataset(str(folder / "a.tar"), image_size=8, split="all"))


def _index_reader(tar: bytes) -> Callable[[Path, Any], None]:
    def read(folder: Path, content: Any) -> None:
        (folder / "a.tar").write_bytes(tar)
        status = (folder / "a.tar").stat()
        if isinstance(content, dict) and isinstance(content.get("header"), dict):
            content["header"]["stamp"] = f"{status.st_size} {status.st_mtime_ns}"
        (folder / ".a.tar.index.json").write_bytes(sealed(json.dumps(content).encode()))
        _read_all(open_dataset(str(folder / "a.tar"), image_size=8, split="all"))

    return read


def _weights_reader(model: Path) -> Callable[[Path, bytes], None]:
    """With the digest that makes the file count, as in a folder that is made to do harm."""
    config = json.loads((model / "config.json").read_text())

    def read(folder: Path, content: bytes) -> None:
        (folder / "generator.safetensors").write_bytes(content)
        (folder / "discriminator.safetensors").write_bytes((model / "discriminator.safetensors").read_bytes())
        digests = config["sha256"] | {"generator": sha256(content)}
        (folder / "config.json").write_text(json.dumps(config | {"sha256": digests}))
        load_pretrained(folder)

    return read


def _config_reader(model: Path) -> Callable[[Path, Any], None]:
    def read(folder: Path, content: Any) -> None:
        for name in ("generator.safetensors", "discriminator.safetensors"):
            (folder / name).write_bytes((model / name).read_bytes())
        if isinstance(content, dict) and isinstance(content.get("sha256"), dict):
            content["sha256"].pop("config", None)  # or nothing else of it would be read
        (folder / "config.json").write_text(json.dumps(content))
        load_pretrained(folder)

    return read


def _read_parquet(folder: Path, content: bytes) -> None:
    (folder / "a.parquet").write_bytes(content)
    _read_all(open_dataset(str(folder / "a.parquet"), image_size=8, split="all"))


def _footer_damages(files: Sequence[str]) -> list[str | None]:
    """As the function of this name, by a forked process for each file: the package starts one anew."""
    found: list[str | None] = []
    for file in files:
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os._exit(0 if parquet_footers._damage(file) is None else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        found.append(None if status == 0 else f"its footer is damaged ({status})")
    return found


def _read_coco(folder: Path, content: Any) -> None:
    path = make_coco(folder / "coco")
    next((folder / "coco").rglob("captions_train*.json")).write_text(json.dumps(content))
    _read_all(open_dataset(path, "coco", image_size=8, split="all"))


def _read_pickle(folder: Path, content: bytes) -> None:
    """By both readers, of which at least one refuses it."""
    refused = []
    for reader in (read_strings, read_integers):
        try:
            reader(content, "it")
        except UserError as error:
            refused.append(error)
    if len(refused) == 2:
        raise refused[0]
