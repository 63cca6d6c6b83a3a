"""Files of prompts as people write them."""

from __future__ import annotations

from pathlib import Path

from fastt2i.text.prompts import read_prompts


def test_a_byte_order_mark_and_lines_of_windows_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes("\ufeffa red bird\r\n\r\n \r\na blue cat\r\n".encode())
    assert list(read_prompts(tmp_path / "prompts.txt")) == ["a red bird", "a blue cat"]
