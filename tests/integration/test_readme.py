"""What the README says of the presets is what they are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from fastt2i.config import PRESETS, preset
from fastt2i.data.__main__ import main as data
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.models.model_card import parameter_count

README = Path(__file__).parents[2] / "README.md"
ROW = re.compile(r"^\| `(.+?)` \| (\d+) px \| ([\d.]+) M, ([\d.]+) M", re.MULTILINE)


def test_the_table_of_presets() -> None:
    told = {
        name: (int(size), generator, discriminator)
        for name, size, generator, discriminator in ROW.findall(README.read_text())
    }
    found = {}
    for name in PRESETS:
        model = preset(name).model
        with torch.device("meta"):
            networks = Generator(model, 384), Discriminator(model, 384, 384)
        found[name] = (model.image_size, *(f"{parameter_count(network) / 1e6:.2f}" for network in networks))
    assert told == found


def test_the_data_tools_run_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    commands = re.findall(r"^python -m fastt2i\.data (.+)$", README.read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["inspect", "pack", "verify"]
    for command in commands:
        assert data(shlex.split(command)) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "contact.png", "packed", "verify.jsonl"}


def test_the_operators_it_imports_exist() -> None:
    for line in re.findall(r"^from fastt2i.+$", README.read_text(), re.MULTILINE):
        exec(line, {})
