"""The console script, and how every program here ends."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from fastt2i.errors import UserError

#: Commands, the module behind each, and what it does.
COMMANDS = {
    "train": ("fastt2i.train", "train a text-to-image model on captioned images"),
    "generate": ("fastt2i.generate", "draw images from prompts with a trained model"),
    "export": ("fastt2i.export.__main__", "write a trained model as one file for other software"),
    "serve": ("fastt2i.serve.__main__", "show a trained model on a web page, and answer programs"),
    "evaluate": ("fastt2i.evaluate", "score a trained model"),
    "data": ("fastt2i.data.__main__", "look after data sets"),
    "doctor": ("fastt2i.doctor", "tell what would run on this machine, and what not"),
}


def run(main: Callable[[], int | None]) -> int:
    """Run a program and return its exit status.

    A mistake of the user's becomes one sentence on the error stream and status 2, an interrupt status 130. Anything
    else that is raised is a defect of ours and keeps its traceback. What the terminal's encoding lacks is escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except UserError as error:
        print(f"fastt2i: error: {plain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def plain(text: object) -> str:
    """A text for a terminal: what is not printed, such as the sequences that a file's name may hold, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def plain_warnings(shown: bool = True) -> None:
    """Show warnings as one line each, as errors are, for the rest of the program; or none, where another process of the
    same machine shows the same ones."""
    if not shown:
        warnings.simplefilter("ignore")
    warnings.showwarning = lambda message, *_: print(f"fastt2i: warning: {plain(message)}", file=sys.stderr)


def python_command() -> str:
    """How to call this interpreter from the current directory, quoted for a shell."""
    executable = Path(sys.executable)
    if executable.is_relative_to(Path.cwd()):
        return shlex.quote(str(executable.relative_to(Path.cwd())))
    return "python" if shutil.which("python") == sys.executable else shlex.quote(sys.executable)


def main(argv: Sequence[str] | None = None) -> int:
    """`fastt2i COMMAND ...`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in {"-h", "--help"}:
        print("usage: fastt2i COMMAND [--help] ...\n\nTraining text-to-image GANs, fast.\n\ncommands:")
        for name, (_, purpose) in COMMANDS.items():
            print(f"  {name:10} {purpose}")
        return 0
    if arguments[0] == "--version":
        import fastt2i

        print(f"fastt2i {fastt2i.__version__}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"fastt2i: error: there is no command {command}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run(lambda: importlib.import_module(COMMANDS[command][0]).main(rest))


if __name__ == "__main__":
    sys.exit(main())
