"""The page on scaling says what is so: its table is what the program prints, and its commands parse."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from benchmarks.gpu import communication
from fastt2i.presets import preset
from fastt2i.train import _parse

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()

pytestmark = pytest.mark.quick


def test_the_table_is_what_the_program_prints() -> None:
    printed = "\n".join(communication.table(list(communication.PRESETS), None, None))
    assert printed in PAGE


def test_the_formula_for_the_number_of_gpus_is_where_efficiency_falls_below_nine_tenths() -> None:
    """Up to what the formula leaves out: (N-1)/N, masks, ids and sums."""
    config, images, seconds, rate = preset("256px"), 32, 0.2, 25e9
    parameters = sum(communication.parameters_of(config))
    floats = config.text.max_keywords * config.model.region_dim + config.model.global_dim
    gpus = (rate * seconds / 9 - 8 * parameters) / (images * 12 * floats)
    wire = sum(communication.traffic(config, parameters, round(gpus), images)) / rate
    assert gpus > 100 and seconds / (seconds + wire) == pytest.approx(0.9, abs=0.005)


def test_the_commands_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"-m fastt2i\.train ((?:[^\n]|\\\n)*)", PAGE)
    assert len(commands) == 3
    for command in commands:
        arguments = _parse(shlex.split(command.replace("\\\n", " ")))
        assert arguments.preset == "256px" and arguments.config.train.batch_size % 8 == 0
