"""What clients of `serve` get who send slowly, or when memory is gone: over connections, of a server in a thread."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from fastt2i import TextToImagePipeline

pytest.importorskip("fastapi", reason="serving is not installed: pip install .[serve]")
from fastt2i.serve.__main__ import _listen, _server
from fastt2i.serve.app import Limits, make_app
from fastt2i.serve.batching import Batcher

BODY = b'{"prompt": "a red circle"}'
HEAD = b"POST /generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
HALF_A_HEAD = HEAD[:40]
#: Seconds that a test waits for what should come at once, or after a short limit.
PATIENCE = 60.0


@contextmanager
def serving(pipeline: TextToImagePipeline, seconds: float) -> Iterator[Callable[[], socket.socket]]:
    """A server of clients that take at most so long; gives what connects to it."""
    limits = Limits(seconds=seconds)
    batcher = Batcher(pipeline, max_images=limits.candidates, max_waiting=limits.waiting)
    listener = _listen("127.0.0.1", 0)
    server = _server(make_app(pipeline, batcher, limits, name="model", examples=[]), batcher, limits)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield lambda: socket.create_connection(listener.getsockname(), timeout=PATIENCE)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> TextToImagePipeline:
    return TextToImagePipeline.from_pretrained(model_folder, device="cpu")


@pytest.fixture(scope="module")
def connect(pipeline: TextToImagePipeline) -> Iterator[Callable[[], socket.socket]]:
    """To a server of clients that take at most half a second."""
    with serving(pipeline, 0.5) as connect:
        yield connect


def until_closed(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection, perhaps while bytes are on their way to it."""
    received = b""
    with suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            received += part
    return received


def answer(client: socket.socket) -> tuple[int, dict[str, str], dict[str, object]]:
    """Status, header fields and JSON of the next answer."""
    with client.makefile("rb") as file:
        status = int(file.readline().split()[1])
        lines = iter(lambda: file.readline().decode().strip(), "")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return status, fields, json.loads(file.read(int(fields["content-length"])))


@contextmanager
def trickling(client: socket.socket) -> Iterator[None]:
    """A byte is sent every now and then, as long as the server takes them."""
    stop = threading.Event()

    def send() -> None:
        with suppress(OSError):
            while not stop.wait(0.05):
                client.sendall(b" ")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("sent", ["nothing", "half", "a byte at a time"])
def test_a_body_that_does_not_end_is_answered_408(connect: Callable[[], socket.socket], sent: str) -> None:
    with connect() as client:
        client.sendall(HEAD % 10_000 + (BODY[:9] if sent == "half" else b""))
        with trickling(client) if sent == "a byte at a time" else nullcontext():
            status, fields, content = answer(client)
        assert status == 408 and fields["connection"] == "close"
        assert content == {"error": "the body has not come to its end within 0.5 seconds"}
        assert until_closed(client) == b""


@pytest.mark.parametrize(
    ("before", "sent"),
    [(b"", b""), (b"", HALF_A_HEAD), (HEAD % len(BODY) + BODY, HALF_A_HEAD)],
    ids=["nothing", "half", "half of a second request"],
)
def test_header_lines_that_do_not_end_close_the_connection(
    connect: Callable[[], socket.socket], before: bytes, sent: bytes
) -> None:
    with connect() as client:
        if before:
            client.sendall(before)
            assert answer(client)[0] == 200
        client.sendall(sent)
        assert until_closed(client) == b""


def test_what_is_refused_for_its_size_may_not_go_on_for_ever(connect: Callable[[], socket.socket]) -> None:
    with connect() as client:
        client.sendall(HEAD % 10**9 + b" " * 40_000)
        assert answer(client)[0] == 413
        with trickling(client):
            assert until_closed(client) == b""


def test_one_that_is_slow_within_the_limit_is_served(pipeline: TextToImagePipeline) -> None:
    request = HEAD % len(BODY) + BODY
    with serving(pipeline, PATIENCE) as connect, connect() as client:
        for _ in range(2):  # on one connection
            for start in range(0, len(request), 40):
                client.sendall(request[start : start + 40])
                time.sleep(0.02)
            status, _, content = answer(client)
            assert status == 200 and len(content["images"]) == 1  # type: ignore[arg-type]


def test_programs_are_told_of_408(connect: Callable[[], socket.socket]) -> None:
    with connect() as client:
        client.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: here\r\n\r\n")
        responses = answer(client)[2]["paths"]["/generate"]["post"]["responses"]  # type: ignore[index]
    assert {"200", "400", "408", "413", "422", "503"} == set(responses)
    assert responses["408"]["content"] == responses["413"]["content"]


def test_memory_that_is_gone_while_drawing_is_told(
    connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a time to try again, when there may be some."""
    body = b'{"prompt": "a red circle", "num": 2}'
    with connect() as client:
        with monkeypatch.context() as patched:
            patched.setattr("fastt2i.devices.free_memory.free_memory", lambda: 2 * 32**2)
            client.sendall(HEAD % len(body) + body)
            status, fields, content = answer(client)
        sentence = "2 images of 32 px at once would take 0.0 GiB of memory, and 0.0 GiB are free; ask for fewer"
        assert (status, content) == (503, {"error": sentence}) and fields["retry-after"] == "5"
        client.sendall(HEAD % len(body) + body)
        status, _, content = answer(client)
        assert status == 200 and len(content["images"]) == 2  # type: ignore[arg-type]
