"""The web page and the interface for programs, as a process of its own: images, errors, load, the end, a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastt2i import TextToImagePipeline
from fastt2i.serve.__main__ import _listen

pytest.importorskip("fastapi", reason="serving is not installed: pip install .[serve]")
ROOT = Path(__file__).parents[2]
PROMPT = "a small red circle on a white background"


class Server:
    """`python -m fastt2i.serve` at a free port of this machine."""

    def __init__(self, model: Path, *options: str) -> None:
        command = [sys.executable, "-m", "fastt2i.serve", "--model", str(model), "--port", "0", *options]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"at (http://\S+)$", line)
        assert found, line + self.process.communicate()[1]
        self.url = found[1]

    def ask(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
        """Status and JSON of an answer; body: what to send, as JSON unless it is bytes."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def stop(self) -> tuple[int, str]:
        """Exit status after SIGTERM, and what stood on the error stream."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors

    def resident(self) -> int:
        """Bytes of memory."""
        return 4096 * int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])


@pytest.fixture(scope="module")
def server(model_folder: Path) -> Iterator[Server]:
    server = Server(model_folder)
    yield server
    assert server.stop() == (0, "")


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))).astype(int)


def test_images_are_the_pipelines_own(server: Server, model_folder: Path) -> None:
    body = {"prompt": PROMPT, "num": 2, "seed": 3, "best_of": 5, "truncation": 0.8, "negative_prompt": "blue"}
    status, answer = server.ask("/generate", body | {"attention": True})
    assert status == 200 and answer["notes"] == []
    expected = TextToImagePipeline.from_pretrained(model_folder, device="cpu")(
        PROMPT, num=2, seed=3, best_of=5, truncation=0.8, negative_prompt="blue"
    )
    for ours, own, number in zip(answer["images"], expected, answer["numbers"], strict=True):
        assert np.array_equal(pixels(ours), np.asarray(own)) and own.info["number"] == str(number)
    assert answer["keywords"] == ["small", "red", "circle", "white", "background"]
    assert np.asarray(answer["attention"]).shape == (2, 5, 8, 8)
    texts = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).text  # type: ignore[attr-defined]
    assert texts["prompt"] == PROMPT and texts["seed"] == "3" and texts["model"] == answer["model"]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 422, "the body is not JSON"),
        (b"", 422, "the body is no JSON object"),
        (b"\xff\xfe{}", 422, "the body is not JSON"),
        ([], 422, "the body is no JSON object"),
        ({}, 422, "prompt is missing"),
        ({"prompt": 3}, 422, "prompt: input should be a valid string"),
        ({"prompt": " "}, 400, "the prompt ' ' is empty"),
        ({"prompt": "a", "num": 0}, 400, "num is 0; it must be 1 or more"),
        ({"prompt": "a", "num": 17}, 400, "num is 17; it must be 16 or less"),
        ({"prompt": "a", "num": "2"}, 422, "num: input should be a valid integer"),
        ({"prompt": "a", "num": 10**40}, 400, "it must be 16 or less"),
        ({"prompt": "a", "best_of": 65}, 400, "best_of is 65; it must be 64 or less"),
        ({"prompt": "a", "seed": 2**63}, 400, "it must be between 0 and 2^63 - 1"),
        ({"prompt": "a", "truncation": 3}, 400, "truncation is 3.0; it must be between 0 and 2"),
        ({"prompt": "a", "negative_prompt": "b"}, 400, "give a best_of"),
        ({"prompt": "a", "colour": "red"}, 422, "there is no field colour; there are prompt, num"),
        ({"prompt": "a" * 2001}, 422, "prompt: string should have at most 2000 characters"),
        ({"prompt": "a" * 40_000}, 413, "the body is larger than 32768 bytes"),
    ],
)
def test_other_input_is_one_sentence(server: Server, body: Any, status: int, sentence: str) -> None:
    code, answer = server.ask("/generate", body)
    assert code == status and sentence in answer["error"] and "\n" not in answer["error"]
    assert server.ask("/healthz")[0] == 200


def test_half_a_surrogate_pair_and_what_the_model_cannot_follow(server: Server) -> None:
    status, answer = server.ask("/generate", rb'{"prompt": "a red \ud800 circle"}')
    assert status in (200, 422) and ("images" in answer or "error" in answer)
    status, answer = server.ask("/generate", {"prompt": "日本語"})
    assert status == 200 and "has no word that the language model" in answer["notes"][0]


def test_other_paths_and_methods(server: Server) -> None:
    assert server.ask("/nowhere") == (404, {"error": "Not Found"})
    assert server.ask("/generate") == (405, {"error": "Method Not Allowed"})
    for path in ("/", "/docs", "/page.js", "/healthz"):  # as load balancers look whether it is there
        with urllib.request.urlopen(urllib.request.Request(server.url + path, method="HEAD")) as answer:
            assert answer.status == 200 and answer.read() == b""
    with pytest.raises(urllib.error.HTTPError) as form:  # what `curl -d` declares by itself
        urllib.request.urlopen(f"{server.url}/generate", b'{"prompt": "a"}')
    assert b"lacks the header Content-Type: application/json" in form.value.read()
    status, api = server.ask("/openapi.json")
    assert status == 200 and {"/generate", "/healthz", "/about"} == set(api["paths"])


def test_nothing_comes_from_elsewhere(server: Server) -> None:
    for path in ("/", "/docs", "/page.js", "/docs.js", "/style.css"):
        with urllib.request.urlopen(server.url + path, timeout=60) as answer:
            policy, content = answer.headers["Content-Security-Policy"], answer.read().decode()
        assert "default-src 'none'" in policy and not re.search(r"(?:src|href)=\"(?:https?:)?//|@import|url\(", content)


def test_many_clients(server: Server, model_folder: Path) -> None:
    """50 at a time: no error, each its own images, and the memory does not grow with their number."""
    pipeline = TextToImagePipeline.from_pretrained(model_folder, device="cpu")
    bodies = [{"prompt": PROMPT if n % 2 else "a large blue circle", "seed": n, "num": 1 + n % 3} for n in range(50)]
    expected = [pipeline(b["prompt"], seed=b["seed"], num=b["num"]) for b in bodies]  # type: ignore[arg-type]
    with ThreadPoolExecutor(50) as pool:
        before = 0
        for turn in range(6):
            answers = list(pool.map(lambda body: server.ask("/generate", body), bodies))
            assert [status for status, _ in answers] == [200] * 50
            for (_, answer), own in zip(answers, expected, strict=True):
                for image, ours in zip(answer["images"], own, strict=True):
                    assert np.array_equal(pixels(image), np.asarray(ours))
            before = before or server.resident() * (turn == 1)
    assert server.resident() < before + 64 * 2**20


def test_the_end_answers_what_was_asked(model_folder: Path) -> None:
    server = Server(model_folder)
    body = {"prompt": PROMPT, "num": 16, "best_of": 64}
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(server.ask, "/generate", body) for _ in range(20)]
        while server.ask("/healthz")[1]["waiting"] == 0:
            time.sleep(0.01)
        began = time.monotonic()
        status, errors = server.stop()
        assert (status, errors) == (0, "") and time.monotonic() - began < 5
        answers = []
        for each in asked:
            try:
                answers.append(each.result())
            except OSError:  # its connection came after the end
                continue
    assert any(code == 200 for code, _ in answers)
    assert all(code == 200 or answer == {"error": "the server is stopping"} for code, answer in answers)


def test_a_full_queue_is_told(model_folder: Path) -> None:
    server = Server(model_folder, "--max-waiting", "1")
    with ThreadPoolExecutor(20) as pool:
        body = {"prompt": PROMPT, "num": 16, "best_of": 64}
        answers = list(pool.map(lambda _: server.ask("/generate", body), range(20)))
    assert {200, 503} == {code for code, _ in answers}
    assert (503, {"error": "too many requests are waiting; try again in a moment"}) in answers
    assert server.stop() == (0, "")


def test_addresses(server: Server, model_folder: Path) -> None:
    port = server.url.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "fastt2i.serve", "--model", str(model_folder), "--port"]
    taken = subprocess.run([*command, port], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert taken.returncode == 2 and taken.stderr.startswith("fastt2i: error: cannot listen at 127.0.0.1, port ")
    other = Server(model_folder, "--host", "0.0.0.0")
    status, errors = other.stop()
    assert status == 0 and "warning: whoever reaches 0.0.0.0 can ask for images" in errors


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)], ids=["phone", "desktop"])
def test_the_page_in_a_browser(server: Server, browser: Any, width: int, height: int, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    browser.get(server.url)
    wait = WebDriverWait(browser, 60)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, "#gallery button img"))
    # By the keyboard alone: the prompt has the focus, Enter draws, Tab leads to the settings.
    active = browser.switch_to.active_element
    assert active.get_attribute("id") == "prompt"
    active.send_keys(PROMPT, Keys.ENTER)
    wait.until(lambda page: len(page.find_elements(By.CSS_SELECTOR, "#images img")) == 4)
    assert "drawn in" in browser.find_element(By.ID, "status").text
    link = browser.find_element(By.CSS_SELECTOR, "#images a")
    assert link.get_attribute("download") == "a-small-red-circle-on-a-white-background-seed-0-0.png"
    words = browser.find_elements(By.CSS_SELECTOR, "#keywords button")
    assert [word.text for word in words] == ["small", "red", "circle", "white", "background"]
    words[1].send_keys(Keys.ENTER)
    assert len(browser.find_elements(By.CSS_SELECTOR, "#images canvas")) == 4
    assert words[1].get_attribute("aria-pressed") == "true"
    number = browser.find_element(By.ID, "num")
    browser.execute_script("document.getElementById('num').removeAttribute('max')")
    number.clear()
    number.send_keys("99", Keys.ENTER)
    wait.until(lambda page: "num is 99; it must be 16 or less" in page.find_element(By.ID, "status").text)
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), "it scrolls sideways"
    browser.get(server.url + "/docs")
    wait.until(lambda page: "POST /generate" in page.page_source)
    # 400 is the answer that was asked for; nothing else may be complained of, as scripts and styles from elsewhere are.
    complaints = [entry["message"] for entry in browser.get_log("browser") if "status of 400" not in entry["message"]]
    assert complaints == []


def test_no_answer_waits_for_acknowledgements() -> None:
    listener = _listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
