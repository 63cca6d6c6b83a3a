"""`python -m fastt2i.serve`: a web page around a trained model, and an interface for programs."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from fastt2i.cli import from_home, plain_warnings, run
from fastt2i.errors import UserError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from fastt2i.serve.app import Limits
    from fastt2i.serve.batching import Batcher

#: Seconds from the signal to the end: what was asked for before is drawn in them.
GRACE = 4.0


@dataclass(kw_only=True)
class Arguments:
    """Show a trained model on a web page, and let programs ask it for images."""

    model: str
    """Model folder, the run directory that holds one, or `user/name` on the hub."""
    host: str = "127.0.0.1"
    """Address to listen at; the default is for this machine alone."""
    port: int = 7860
    """Port to listen at; 0 takes a free one."""
    example: tyro.conf.UseAppendAction[list[str]]
    """A prompt of the gallery; may be given several times. By default some captions that the training held out."""
    max_num: int = 16
    """Images that one request may ask for."""
    max_candidates: int = 64
    """Images that may be drawn for one request, the best of which are kept; and in one pass for several."""
    max_waiting: int = 256
    """Requests that may wait."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the networks multiply in."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    offline: bool = False
    """Take a model on the hub from its cache, and ask no network."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit status."""
    arguments = from_home(tyro.cli(Arguments, args=argv, prog="fastt2i serve"), "model")
    for name in ("max_num", "max_candidates", "max_waiting"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be 1 or more")
    if arguments.max_num > arguments.max_candidates:
        raise UserError(
            f"--max-num is {arguments.max_num}; it must be --max-candidates, {arguments.max_candidates}, or less"
        )
    plain_warnings()
    try:
        import uvicorn  # noqa: F401
        from fastapi import FastAPI  # noqa: F401
    except ImportError as error:
        raise UserError(f'serving needs {error.name}; install it with pip install "fastt2i[serve]"') from error
    listener = _listen(arguments.host, arguments.port)
    app, batcher, limits = _load(arguments)
    address = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    if not _is_loopback(listener):
        print(
            f"fastt2i: warning: whoever reaches {arguments.host} can ask for images, there is no password; "
            "--host 127.0.0.1 is for this machine alone",
            file=sys.stderr,
            flush=True,
        )
    server = _server(app, batcher, limits)
    # For a signal that comes before the server listens to signals itself; and at its end it raises what it got again,
    # though being told to end is no failure.
    signal.signal(signal.SIGTERM, server.handle_exit)
    print(f"serving {arguments.model} at http://{address}:{listener.getsockname()[1]}", flush=True)
    server.run(sockets=[listener])
    return 0


def _load(arguments: Arguments) -> tuple[FastAPI, Batcher, Limits]:
    import torch

    from fastt2i.devices.selection import choose_device
    from fastt2i.pipeline import TextToImagePipeline
    from fastt2i.serve.app import Limits, make_app
    from fastt2i.serve.batching import Batcher

    pipeline = TextToImagePipeline.from_pretrained(
        arguments.model,
        choose_device(arguments.device),
        getattr(torch, arguments.dtype),
        revision=arguments.revision,
        offline=arguments.offline,
    )
    pipeline.check_memory(arguments.max_candidates)
    limits = Limits(num=arguments.max_num, candidates=arguments.max_candidates, waiting=arguments.max_waiting)
    facts = pipeline.model.facts
    examples = arguments.example or facts.get("example_prompts", [])
    batcher = Batcher(pipeline, max_images=limits.candidates, max_waiting=limits.waiting)
    app = make_app(pipeline, batcher, limits, name=Path(arguments.model).name, examples=examples)
    return app, batcher, limits


def _listen(host: str, port: int) -> socket.socket:
    """Before the model is loaded, so that an address that is taken is told at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot listen at {host}, port {port}: {reason}; choose others with --host and --port"
        ) from error
    # Connections inherit it: asyncio would set it itself, but not where it is handed a socket. Without it an answer's
    # last packet waits 40 ms for the client to acknowledge those before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _server(app: FastAPI, batcher: Batcher, limits: Limits) -> uvicorn.Server:
    """Runs until SIGTERM or Ctrl-C: what was asked for before is answered, for `GRACE` seconds at most."""
    import uvicorn

    from fastt2i.serve.timed_connection import timed_connection

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            batcher.stop(GRACE - 1)
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        http=timed_connection(limits.seconds),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=round(GRACE),
    )
    return Server(config)


if __name__ == "__main__":
    sys.exit(run(main))
