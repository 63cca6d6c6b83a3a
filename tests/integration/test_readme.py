"""The README says of the presets what they are, and its commands run."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from fastt2i import cli
from fastt2i.data.__main__ import main as data
from fastt2i.models.discriminator import Discriminator
from fastt2i.models.generator import Generator
from fastt2i.models.model_card import parameter_count
from fastt2i.presets import PRESETS, preset

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
#: A program, and its arguments: to the end of the line or of the code, or on where a backslash ends the line.
COMMAND = re.compile(r"-m fastt2i\.(\w+) ((?:\\\n|[^\n`])+)")
ROW = re.compile(r"^\| `(.+?)` \| (\d+) px \| ([\d.]+) M, ([\d.]+) M", re.MULTILINE)


pytestmark = pytest.mark.quick


class ParsedError(Exception):
    pass


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_the_commands_parse(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_only(parse: Callable[..., Any]) -> Callable[..., None]:
        def stop(*arguments: Any, **options: Any) -> None:
            parse(*arguments, **options)
            raise ParsedError

        return stop

    commands = COMMAND.findall((ROOT / document).read_text())
    assert commands or document != "README.md"
    monkeypatch.setattr(tyro, "cli", parse_only(tyro.cli))
    parser = argparse.ArgumentParser
    monkeypatch.setattr(parser, "parse_args", parse_only(parser.parse_args))
    # The model that a run starts from is not there.
    monkeypatch.setattr("fastt2i.engine.initial_model.settings_from", lambda folder, base, size: base)
    monkeypatch.chdir(tmp_path)
    for program, arguments in commands:
        words = shlex.split(arguments.replace("\\\n", " "), comments=True)
        with pytest.raises(SystemExit if "--help" in words else ParsedError):
            cli.main([program, *words])


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
