"""The console script, and how every program here ends."""

from __future__ import annotations

import importlib
import io
import os
import shlex
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from fastt2i.errors import UserError
from fastt2i.sections import paths_from_home

A = TypeVar("A")

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

#: Sent when a terminal is closed; Windows has no such signal.
HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
#: What asks a program to stop: Ctrl-C, torchrun or the system, a terminal that is closed.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))


def run(main: Callable[[], int | None]) -> int:
    """Run a program and return its exit status.

    A mistake of the user's becomes one sentence on the error stream and status 2, an interrupt status 130. Anything
    else that is raised is a defect of ours and keeps its traceback. What the terminal's encoding lacks is escaped; an
    output that was closed before the start, as of a service, takes everything and keeps nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return main() or 0
    except UserError as error:
        print(f"fastt2i: error: {plain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        discard(sys.stdout)
        return 141
    except (MemoryError, RuntimeError) as error:
        if not lacks_memory(error):
            raise
        reason = plain(error).partition("\\n")[0] or "an allocation failed"
        print(f"fastt2i: error: there is not enough memory: {reason}; ask for less at once", file=sys.stderr)
        return 2


def lacks_memory(error: Exception) -> bool:
    """Whether an error says that memory is used up: Python's and NumPy's is one of its own, torch's a RuntimeError."""
    told = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in told or "out of memory" in told


def discard(stream: TextIO) -> None:
    """Drop what a stream still holds and what is written to it from now on: its reader has gone, and it would raise, at
    exit too."""
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


def plain(text: object) -> str:
    """A text for a terminal: what is not printed, such as the sequences that a file's name may hold, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def plain_warnings(shown: bool = True) -> None:
    """Show warnings as one line each, as errors are, for the rest of the program; or none, where another process of the
    same machine shows the same ones."""
    if not shown:
        warnings.simplefilter("ignore")
    warnings.showwarning = lambda message, *_: print(f"fastt2i: warning: {plain(message)}", file=sys.stderr)


def from_home(arguments: A, *texts: str) -> A:
    """The arguments, with `~` at the start of paths made the home directory: a shell leaves it alone after `=`.

    texts: the arguments that are texts and may be paths, or several joined by `::`.
    """
    for name, value in vars(arguments).items():
        if isinstance(value, Path):
            setattr(arguments, name, Path(os.path.expanduser(value)))
        elif name in texts:
            setattr(arguments, name, paths_from_home(value))
    return arguments


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
