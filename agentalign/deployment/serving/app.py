"""The routes: /v1/chat/completions, /v1/models, /health, /metrics, and /openapi.json.

Surprise: nothing here computes. Understanding a request runs in a thread, the model in the worker's own; the event loop only carries words.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from agentalign.deployment.serving import replies
from agentalign.deployment.serving.adapters import BASE
from agentalign.deployment.serving.chat import Asked, Chat, RefusedError, Turn
from agentalign.deployment.serving.guard import OWNER, Guard
from agentalign.deployment.serving.metrics import Metrics
from agentalign.deployment.serving.protocol import ChatRequest, ErrorReply
from agentalign.deployment.serving.worker import Event
from agentalign.errors import RegistryError
from agentalign.training.continuous import Written

ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply} for status in (400, 401, 403, 404, 413, 429, 500, 503, 504)}
LOOK_SECONDS = 0.5
"""How often a request that waits looks whether its client is still there."""


def create_app(chat: Chat, metrics: Metrics, *, keys: Sequence[str] = (), max_body_bytes: int = 1 << 20) -> FastAPI:
    """The app over a worker that runs already; the worker is stopped with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        chat.worker.stop()

    app = FastAPI(title="agentalign serve", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, keys=keys, max_body_bytes=max_body_bytes)
    _handle_errors(app, metrics)

    @app.post("/v1/chat/completions", responses=ERRORS, response_model=None)
    async def complete(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        call = _Call(chat, metrics, request, body)
        await call.begin()
        if body.stream:
            return StreamingResponse(call.stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return JSONResponse(await call.whole(), headers={"Cache-Control": "no-store"})

    @app.get("/v1/models", responses=ERRORS)
    def models() -> dict[str, Any]:
        """Every name that this server answers to."""
        try:
            cards = chat.adapters.models()
        except RegistryError as error:
            raise RefusedError(500, str(error)) from None
        rows = [{"id": name, "object": "model", "created": 0, "owned_by": "agentalign", "root": card.ref} for name, card in cards.items()]
        return {"object": "list", "data": [*rows, {"id": BASE, "object": "model", "created": 0, "owned_by": "agentalign", "root": BASE}]}

    @app.get("/health", responses=ERRORS, response_model=None)
    async def health() -> Response:
        """Is the model's thread alive?"""
        return JSONResponse({"status": "ok" if chat.worker.alive else "stopping"}, status_code=200 if chat.worker.alive else 503)

    @app.get("/metrics", responses=ERRORS, response_model=None)
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _without_422(app)
    return app


class _Call:
    """One request and its events."""

    def __init__(self, chat: Chat, metrics: Metrics, request: Request, body: ChatRequest) -> None:
        self._chat, self._metrics, self._request, self._body = chat, metrics, request, body
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._began = time.monotonic()
        self._asked: Asked | None = None

    async def begin(self) -> None:
        """Understand the request and hand it to the worker."""
        owner, named = self._request.scope.get(OWNER, ""), self._request.headers.get("x-conversation-id", "")
        self._asked = await run_in_threadpool(self._chat.submit, self._body, owner, named, self._tell)

    @property
    def asked(self) -> Asked:
        """The request, once it was understood."""
        if self._asked is None:
            raise RefusedError(500, "the request was not begun.")
        return self._asked

    async def whole(self) -> dict[str, Any]:
        """The answer."""
        written: list[list[Written]] = [[] for _ in self.asked.jobs]
        try:
            async for number, one in self._written():
                written[number].append(one)
        finally:
            self._cancel()
        turns = [await self._read(number, ids[-1]) for number, ids in enumerate(written)]
        self._count(200, turns)
        return replies.whole(self._chat, self.asked, turns, written)

    async def stream(self) -> AsyncIterator[str]:
        """The answer in chunks; an error on the way is a chunk too, since the status is sent already."""
        chunks = [replies.Chunks(self._chat, self.asked, number) for number in range(len(self.asked.jobs))]
        turns: list[Turn] = []
        try:
            for answer in chunks:
                yield answer.first()
            async for number, one in self._written():
                line = chunks[number].text(one)
                if line:
                    yield line
                if one.end:
                    turns.append(await self._read(number, one))
                    for line in chunks[number].last(turns[-1]):
                        yield line
            self._count(200, turns)
            yield replies.end_of_stream(self.asked)
        except RefusedError as error:
            self._count(error.status, turns)
            yield f"data: {bytes(_error(error).body).decode()}\n\n"
        finally:
            self._cancel()

    async def _read(self, number: int, last: Written) -> Turn:
        return await run_in_threadpool(self._chat.read, self.asked, number, stopped=last.end == "stop")

    def _cancel(self) -> None:
        for job in self.asked.jobs:
            self._chat.worker.cancel(job)

    async def _written(self) -> AsyncIterator[tuple[int, Written]]:
        """What is written, with the number of its answer, until the last of all."""
        first, left, looked = True, len(self.asked.jobs), time.monotonic()
        while left:
            # By the clock: where words come steadily, there is no pause to look in. A stream's response looks by itself.
            if not self._body.stream and time.monotonic() - looked >= LOOK_SECONDS:
                if await self._request.is_disconnected():
                    raise RefusedError(499, "the client has gone.")
                looked = time.monotonic()
            try:
                number, event = await asyncio.wait_for(self._events.get(), LOOK_SECONDS)
            except TimeoutError:
                continue
            if event.written is None:
                raise RefusedError(504 if event.late else 503 if "stopping" in event.problem else 500, event.problem)
            if first:
                self._metrics.first_token.observe(time.monotonic() - self._began)
                first = False
            left -= event.last
            yield number, event.written

    def _tell(self, number: int, event: Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (number, event))
        except RuntimeError:  # the loop has ended, and with it whoever would have read this
            return

    def _count(self, status: int, turns: Sequence[Turn]) -> None:
        version, work = self.asked.version, self.asked.jobs[0].work
        self._metrics.requests.labels(version, str(status)).inc()
        self._metrics.prompt_tokens.labels(version).inc(len(work.context))
        self._metrics.cached_tokens.labels(version).inc(work.cached)
        self._metrics.completion_tokens.labels(version).inc(sum(len(job.work.ids) for job in self.asked.jobs))
        self._metrics.duration.observe(time.monotonic() - self._began)
        malformed = sum(bool(turn.message.malformed) for turn in turns)
        if malformed:
            self._metrics.malformed.labels(version).inc(malformed)


def _handle_errors(app: FastAPI, metrics: Metrics) -> None:
    async def refused(_: Request, error: Exception) -> Response:
        known = error if isinstance(error, RefusedError) else RefusedError(500, "something broke in the server; its log says what.")
        metrics.requests.labels("", str(known.status)).inc()
        return _error(known)

    async def invalid(request: Request, error: Exception) -> Response:
        return await refused(request, _invalid(error) if isinstance(error, RequestValidationError) else error)

    async def http(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            return await refused(request, error)
        answer = _error(RefusedError(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, refused)


def _invalid(error: RequestValidationError) -> RefusedError:
    """A 400 that names the parameter."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"][1:]]
    if first["type"] == "extra_forbidden":
        name = ".".join(place)
        return RefusedError(400, f"`{name}` is not a parameter that this server honours. Leave it out.", name, "unknown_parameter")
    if first["type"] == "json_invalid" or not place:
        return RefusedError(400, "the body is not a JSON object that can be read.")
    return RefusedError(400, f"`{'.'.join(place)}` cannot be honoured: {first['msg']}.", place[0], "invalid_value")


def _error(error: RefusedError) -> JSONResponse:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    content = {"error": {"message": str(error), "type": kind, "param": error.param, "code": error.code}}
    return JSONResponse(content, status_code=error.status, headers={"Retry-After": "1"} if error.status in (429, 503) else None)


def _without_422(app: FastAPI) -> None:
    """What cannot be read is a 400 here, as the OpenAI API has it; FastAPI's description says 422."""
    described = app.openapi()
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
