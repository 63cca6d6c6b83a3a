"""The routes: a page for people, `POST /generate` for programs, and what both need to know."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException

import fastt2i
from fastt2i.errors import UserError
from fastt2i.models.model_card import model_card, parameter_count
from fastt2i.pictures.pixels import png
from fastt2i.pipeline import Drawing, TextToImagePipeline
from fastt2i.request import Request
from fastt2i.serve.batching import Batcher, QueueFull, Stopping
from fastt2i.serve.body_limit import BodyLimit
from fastt2i.serve.schema import About, ErrorAnswer, Example, GenerateAnswer, GenerateBody, Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ASSETS = Path(__file__).parent / "assets"
PAGES = {"/": "page.html", "/docs": "docs.html"}
FILES = ("page.js", "docs.js", "style.css")
READING = ["GET", "HEAD"]
#: The page runs its own script and shows its own pictures; nothing comes from elsewhere.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
ERRORS: dict[int | str, dict[str, Any]] = {code: {"model": ErrorAnswer} for code in (400, 408, 413, 422, 503)}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for, and how much may wait.

    Attributes:
        num: images of a request.
        candidates: images that are drawn for a request, of which the best are kept.
        waiting: requests that wait.
        body: bytes of a request.
        seconds: in which the header lines of a request have to come, and then its body.
    """

    num: int = 16
    candidates: int = 64
    waiting: int = 256
    body: int = 32_768
    seconds: float = 30.0


def make_app(
    pipeline: TextToImagePipeline, batcher: Batcher, limits: Limits, *, name: str, examples: Sequence[str]
) -> FastAPI:
    """The application of one model.

    Args:
        pipeline: the model.
        batcher: draws what is asked for.
        limits: of requests.
        name: of the model, for people.
        examples: prompts of the gallery, drawn here.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.stop(0)
        await run_in_threadpool(batcher.join)

    app = FastAPI(
        title="fastt2i", version=fastt2i.__version__, lifespan=lifespan, docs_url=None, redoc_url=None, responses=ERRORS
    )
    app.add_middleware(BodyLimit, limit=limits.body, seconds=limits.seconds)
    _add_error_handlers(app)
    _add_pages(app)
    about = _about(pipeline, limits, name, examples)

    @app.get("/about")
    async def tell_about() -> About:
        """The model: its card, the limits, a gallery."""
        return about

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the server answers."""
        return Health(status="ok", model=about.model, waiting=batcher.waiting)

    @app.post("/generate")
    async def generate(body: GenerateBody) -> GenerateAnswer:
        """Draw images of a prompt. Requests that come together are drawn together."""
        request = _request(body, limits)
        try:
            drawing = await asyncio.wrap_future(batcher.submit(request))
        except QueueFull:
            raise HTTPException(
                503, "too many requests are waiting; try again in a moment", {"Retry-After": "1"}
            ) from None
        except UserError as error:  # memory that was free at the start is not any more
            raise HTTPException(503, str(error), {"Retry-After": "5"}) from None
        except Stopping:
            raise HTTPException(503, "the server is stopping", {"Retry-After": "5"}) from None
        return await run_in_threadpool(_answer, pipeline, drawing, body.attention)

    return app


def _request(body: GenerateBody, limits: Limits) -> Request:
    if body.num > limits.num:
        raise HTTPException(400, f"num is {body.num}; it must be {limits.num} or less")
    if body.best_of is not None and body.best_of > limits.candidates:
        raise HTTPException(400, f"best_of is {body.best_of}; it must be {limits.candidates} or less")
    try:
        return Request(**body.model_dump(exclude={"attention"}))
    except UserError as error:
        raise HTTPException(400, str(error)) from error


def _answer(pipeline: TextToImagePipeline, drawing: Drawing, attention: bool) -> GenerateAnswer:
    assert drawing.scores is not None
    words: list[str] = []
    maps: list[Any] = []
    if attention:
        words, found = pipeline.attention(drawing.images, drawing.request.prompt)
        maps = (found * 1e5).round().div(1e5).tolist()
    return GenerateAnswer(
        images=[base64.b64encode(png(image)).decode() for image in pipeline.to_pillow(drawing)],
        scores=[round(score, 4) for score in drawing.scores.tolist()],
        numbers=drawing.numbers,
        keywords=words,
        attention=maps,
        notes=[f"The prompt {note}." for note in pipeline.notes(drawing.request.prompt)],
        model=pipeline.model.digest,
    )


def _about(pipeline: TextToImagePipeline, limits: Limits, name: str, prompts: Sequence[str]) -> About:
    model = pipeline.model
    size = model.config.image_size
    facts = {
        "image": f"{size} x {size} pixels",
        "generator": f"{parameter_count(model.generator) / 1e6:.2f} M parameters",
        "discriminator": f"{parameter_count(model.discriminator) / 1e6:.2f} M parameters",
        "language model": model.text.model,
    }
    told = {key.replace("_", " "): value for key, value in model.facts.items() if not isinstance(value, list)}
    images = pipeline(list(prompts))
    return About(
        name=name,
        image_size=size,
        model=model.digest,
        facts=facts | told,
        card=model_card(model, name),
        max_num=limits.num,
        max_candidates=limits.candidates,
        examples=[
            Example(prompt=prompt, image=base64.b64encode(png(image)).decode())
            for prompt, image in zip(prompts, images, strict=True)
        ],
    )


def _add_pages(app: FastAPI) -> None:
    def add(path: str, file: str) -> None:
        @app.api_route(path, methods=READING, include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(ASSETS / file, headers=HEADERS)

    for path, file in [*PAGES.items(), *((f"/{file}", file) for file in FILES)]:
        add(path, file)

    @app.get("/favicon.ico", include_in_schema=False)
    async def no_icon() -> Response:
        return Response(status_code=204)


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is one sentence in JSON."""

    @app.exception_handler(StarletteHTTPException)
    async def http(_: object, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: object, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": _sentence(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.exception_handler(Exception)
    async def defect(_: object, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "the server failed; its log has the reason"}, 500)


def _sentence(error: RequestValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:] if not isinstance(part, int))
    message = first["msg"][:1].lower() + first["msg"][1:]
    if first["loc"] == ("body",):  # also where another type is declared, as curl does by itself
        return "the body is no JSON object, or it lacks the header Content-Type: application/json"
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']}"
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "extra_forbidden":
        return f"there is no field {where}; there are {', '.join(GenerateBody.model_fields)}"
    return f"{where}: {message}"
