"""The console script, and how programs end."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastt2i
from fastt2i import cli
from fastt2i.errors import UserError


def ends(error: BaseException) -> int:
    def main() -> int:
        raise error

    return cli.run(main)


def test_a_users_mistake_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(UserError("there is no such folder")) == 2
    captured = capsys.readouterr()
    assert captured.err == "fastt2i: error: there is no such folder\n" and captured.out == ""


def test_what_a_name_holds_is_not_obeyed_by_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise UserError("a\x1b]0;title\x07b\nc\u202e \udcff é 日")

    assert cli.run(fail) == 2
    assert capsys.readouterr().err == "fastt2i: error: a\\x1b]0;title\\x07b\\nc\\u202e \\udcff é 日\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), "an allocation failed"),
        (MemoryError("Unable to allocate 7 TiB"), "Unable to allocate 7 TiB"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 64 bytes\nframe 1"),
            "DefaultCPUAllocator: .*64 bytes",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "CUDA out of memory. Tried 2 GiB"),
    ],
)
def test_memory_that_is_used_up_is_one_line(error: Exception, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(error) == 2
    assert re.fullmatch(
        f"fastt2i: error: there is not enough memory: {told}; ask for less at once\n", capsys.readouterr().err
    )
    with pytest.raises(RuntimeError, match="another"):
        ends(RuntimeError("another"))


def test_other_ends() -> None:
    assert ends(KeyboardInterrupt()) == 130
    assert cli.run(lambda: None) == 0 and cli.run(lambda: 143) == 143
    with pytest.raises(ZeroDivisionError):  # a defect of ours keeps its traceback
        ends(ZeroDivisionError())


def test_outputs_that_were_closed_before_the_start_take_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert cli.run(lambda: print("a line") or sys.stderr.isatty()) == 0


def test_home_is_known_in_paths_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    given = argparse.Namespace(out=Path("~/a~b"), data="~/a::b::~/c", prompt="~/a", json=None)
    found = cli.from_home(given, "data")
    assert (found.out, found.json) == (tmp_path / "a~b", None)
    assert (found.data, found.prompt) == (f"{tmp_path}/a::b::{tmp_path}/c", "~/a")


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"  {command} " in told for command in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"fastt2i {fastt2i.__version__}"
    assert cli.main(["draw"]) == 2
    assert "there is no command draw; choose one of train, generate" in capsys.readouterr().err
    assert cli.main(["train", "--preset", "huge"]) == 2
    assert "there is no preset huge" in capsys.readouterr().err


def test_the_interpreter_is_named_as_it_can_be_called_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "a venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert cli.python_command() == f"'{python}'"
    monkeypatch.chdir(tmp_path)
    assert cli.python_command() == "'a venv/bin/python'"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("PATH", str(python.parent))
    assert cli.python_command() == "python"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_a_program_with_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"fastt2i {command}" in capsys.readouterr().out


def test_a_checkout_without_symbolic_links_finds_the_kernels(tmp_path: Path) -> None:
    """On Windows and on some mounted drives git writes a file that holds the link's target."""
    root = Path(__file__).parents[2]
    (tmp_path / "fastt2i").mkdir()
    (tmp_path / "fastt2i" / "__init__.py").write_bytes((root / "fastt2i" / "__init__.py").read_bytes())
    (tmp_path / "fastt2i" / "kernels").write_text("../kernels")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "gate.py").write_text("")
    look = "from importlib.util import find_spec; print(find_spec('fastt2i.kernels.gate').origin)"
    found = subprocess.run([sys.executable, "-c", look], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(tmp_path / "kernels" / "gate.py")


def test_what_a_terminal_has_no_signs_for_is_escaped(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    program = "import sys; from fastt2i.cli import run; sys.exit(run(lambda: print('caf\\udce9 \\u9e1f')))"
    for encoding, said in (("ascii", b"caf\\udce9 \\u9e1f\n"), ("utf-8", b"caf\\udce9 \xe9\xb8\x9f\n")):
        status = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONIOENCODING": encoding})
        assert status.returncode == 0 and capfdbinary.readouterr().out == said
