"""An HTTP server that speaks OpenAI's format for chat completions: `lladav serve`.

`transformers serve` is not the base of this: it raises every `max_new_tokens` below 1,024 to 1,024, which for this
model is the length of a canvas that is denoised whole, fetches any URL that a request names, and sets options of
autoregressive models on the configuration (transformers 5.23, `cli/serving/utils.py`).
"""

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from .answer_queue import AnswerQueue, Completion, QueueFullError, Request, Ticket
from .assistant import Assistant
from .chat_requests import ChatRequest, Limits, RequestError, Settings, read_messages, read_settings
from .eval_asking import Asking
from .streaming import INCOMPLETE, Draft, TokenState

try:
    from fastapi import FastAPI
    from fastapi import Request as HttpRequest
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, StreamingResponse
    from starlette.exceptions import HTTPException
except ImportError as error:
    raise ImportError("the server needs FastAPI: pip install 'transformers_lladav[serve]'") from error

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEEP_ALIVE_SECONDS = 15
BODY_SECONDS = 60  # for a request to arrive
DECODERS = 2  # requests whose pictures are looked at at the same time


@dataclass(frozen=True)
class Serving:
    """How a server behaves.

    Attributes:
        name: of the model, which requests name.
        how: settings that requests change; its `batch_size` is how many are answered together.
        limits: of a request.
        waiting: requests that may wait.
        timeout: seconds from the arrival of a request to its answer.
        write_timeout: seconds that a client may leave a part of its answer unread.
        api_key: what clients must send as bearer; none by default.
        hosts: names that the server may be called by, in capitals or not; others are refused, so that no page in a
            browser reaches it under a name of its own. "*" allows all.
    """

    name: str
    how: Asking = field(default_factory=lambda: Asking(batch_size=8))
    limits: Limits = field(default_factory=Limits)
    waiting: int = 64
    timeout: float = 300.0
    write_timeout: float = 30.0
    api_key: str | None = None
    hosts: tuple[str, ...] = LOOPBACK


class _Waiter:
    """Waits in an event loop for what a ticket's thread does."""

    def __init__(self, queue: AnswerQueue, request: Request, timeout: float) -> None:
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._end = self._loop.time() + timeout
        self.timeout = timeout
        self.ticket: Ticket = queue.submit(request, self._changed)

    def _changed(self) -> None:
        self._loop.call_soon_threadsafe(self._news.set)

    async def change(self, at_most: float) -> bool:
        """Wait for a draft or the end, so many seconds at most; tells whether it came, or raises what ended it."""
        changed = True
        if not self.ticket.done:
            left = self._end - self._loop.time()
            if left <= 0:
                self.ticket.cancel()
                raise RequestError(
                    f"no answer within {self.timeout:g} s; ask for fewer tokens, or try again", None, 504
                )
            try:
                await asyncio.wait_for(self._news.wait(), min(left, at_most))
            except TimeoutError:
                changed = False
            self._news.clear()
        if self.ticket.error is not None:
            raise self.ticket.error
        return changed


def create_app(assistant: Assistant, serving: Serving) -> FastAPI:
    """Build the server.

    Args:
        assistant: that answers.
        serving: how it behaves.

    Returns:
        An ASGI application; its queue starts and ends with it.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.queue = AnswerQueue(assistant, serving.how.batch_size, serving.waiting)
        app.state.decoders = asyncio.Semaphore(DECODERS)
        yield
        await run_in_threadpool(app.state.queue.close)

    # The pages that document an API load scripts from elsewhere; /openapi.json stays.
    pages: dict[str, Any] = {"docs_url": None, "redoc_url": None}
    app = FastAPI(title="LLaDA-V", version=version("transformers_lladav"), lifespan=lifespan, **pages)
    _add_routes(app, assistant, serving)
    _add_errors(app)
    app.add_middleware(_Guard, serving=serving)
    return app


def _add_routes(app: FastAPI, assistant: Assistant, serving: Serving) -> None:
    card = {"id": serving.name, "object": "model", "created": int(time.time()), "owned_by": "transformers_lladav"}
    tile = assistant.model.config.vision_config.image_size

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_model(name, serving)
        return card

    @app.post("/v1/chat/completions", response_model=None)
    async def complete(asked: ChatRequest, http: HttpRequest) -> JSONResponse | StreamingResponse:
        _check_model(asked.model, serving)
        settings = read_settings(asked, assistant, serving.how, serving.limits)
        async with app.state.decoders:
            messages = await run_in_threadpool(read_messages, asked, serving.limits, tile)
        request = Request(messages, settings.generation, settings.preset, asked.seed, watched=asked.stream)
        try:
            waiter = _Waiter(app.state.queue, request, serving.timeout)
        except QueueFullError as error:
            raise RequestError(str(error), None, 429) from error
        reply = _Reply(assistant, asked, settings, serving.name)
        if asked.stream:
            return _Events(_stream(waiter, reply), serving.write_timeout)
        return JSONResponse(await _whole(waiter, reply, http))


def _check_model(name: str, serving: Serving) -> None:
    if name != serving.name:
        raise RequestError(f"the model {name!r:.200} is not here; this server has {serving.name!r}", "model", 404)


async def _whole(waiter: _Waiter, reply: "_Reply", http: HttpRequest) -> dict[str, Any]:
    """An answer in one piece; a client that leaves takes its request along."""
    try:
        while waiter.ticket.completion is None:
            await waiter.change(at_most=1)
            if await http.is_disconnected():
                raise RequestError("the client left", None, 499)
        return reply.whole(waiter.ticket.completion)
    finally:
        waiter.ticket.cancel()


async def _stream(waiter: _Waiter, reply: "_Reply") -> AsyncGenerator[str]:
    """An answer as server-sent events; when the client leaves, the generator is closed and its request with it."""
    try:
        yield _event(reply.chunk({"role": "assistant", "content": ""}))
        while waiter.ticket.completion is None:
            changed = await waiter.change(at_most=KEEP_ALIVE_SECONDS)
            if not changed:
                yield ": the answer is on its way\n\n"  # proxies end connections on which nothing happens
            elif waiter.ticket.draft is not None and (chunk := reply.draft(waiter.ticket.draft)) is not None:
                yield _event(chunk)
        for chunk in reply.rest(waiter.ticket.completion):
            yield _event(chunk)
    except Exception as error:  # the status is sent already
        yield _event(_error_body(error)[1])
    finally:
        waiter.ticket.cancel()
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class _Reply:
    """An answer in OpenAI's format.

    What is sent of an unfinished answer is the text before its first mask, which stays as it is.

    Args:
        assistant: that answers.
        asked: the request.
        settings: of its generation.
        model: name of the model.
    """

    def __init__(self, assistant: Assistant, asked: ChatRequest, settings: Settings, model: str) -> None:
        self.tokenizer, self.asked, self.settings, self.model = assistant.tokenizer, asked, settings, model
        self.id, self.created, self.sent = f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), ""

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self, completion: Completion) -> dict[str, Any]:
        """The answer in one piece."""
        text, ended = self._text(completion)
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ended}
        figures = {"usage": self._usage(completion), "lladav": _figures(completion)}
        return {**self._frame("chat.completion"), "choices": [choice], **figures}

    def chunk(self, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
        """A part of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._frame("chat.completion.chunk"), "choices": [choice], **more}

    def draft(self, draft: Draft) -> dict[str, Any] | None:
        """What a draft adds to what was sent; None if that is nothing."""
        pieces = draft.pieces[: self.settings.max_tokens]
        masked = next((i for i, piece in enumerate(pieces) if piece.state == TokenState.MASKED), len(pieces))
        # Stops before spaces: an answer may begin with a stop that begins with one.
        known = "".join(piece.text for piece in pieces[:masked]).rstrip(INCOMPLETE)
        known = _before_stops(known, self.settings.stops).strip()
        new = known[len(self.sent) :]
        shown = {"draft": "".join(piece.text for piece in pieces)} if self.asked.include_drafts else {}
        if not new and not shown:
            return None
        self.sent += new
        return self.chunk({"content": new}, **shown)

    def rest(self, completion: Completion) -> list[dict[str, Any]]:
        """The end of a stream: what was not sent yet, the reason, the figures."""
        text, ended = self._text(completion)
        chunks = [self.chunk({"content": text[len(self.sent) :]})] if len(text) > len(self.sent) else []
        chunks.append(self.chunk({}, ended, lladav=_figures(completion)))
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            usage = {"choices": [], "usage": self._usage(completion)}
            chunks.append({**self._frame("chat.completion.chunk"), **usage})
        return chunks

    def _text(self, completion: Completion) -> tuple[str, str]:
        """The words of an answer, and why it ended, in OpenAI's terms."""
        tokens = completion.token_ids[: self.settings.max_tokens]
        cut = len(tokens) < len(completion.token_ids) or completion.finish_reason == "length"
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.strip(), "length" if cut else "stop"

    def _usage(self, completion: Completion) -> dict[str, int]:
        written = min(len(completion.token_ids), self.settings.max_tokens)
        prompt = completion.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _figures(completion: Completion) -> dict[str, Any]:
    return {
        "denoising_steps": completion.denoising_steps,
        "tokens_per_forward": completion.tokens_per_forward,
        "finish_reason": completion.finish_reason,
    }


def _before_stops(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string, and before an end that could become one."""
    for stop in stops:
        text = text.partition(stop)[0]
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                text = text[:-length]
                break
    return text


def _error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """The status of an error and its description in OpenAI's format; what is not the caller's fault tells nothing."""
    status = getattr(error, "status", 400 if isinstance(error, ValueError | TypeError) else 500)
    message = "the server failed; its log says why" if status == 500 else str(error)
    kind = "invalid_request_error" if status < 500 else "server_error"
    message = message.encode(errors="replace").decode()  # half a character that was sent cannot be sent back
    details = {"message": message, "type": kind, "param": getattr(error, "param", None), "code": None}
    return status, {"error": details}


def _answer_error(error: Exception) -> JSONResponse:
    status, body = _error_body(error)
    headers = {"Retry-After": "1"} if status == 429 else None
    return JSONResponse(body, status, headers)


def _add_errors(app: FastAPI) -> None:
    async def failed(request: HttpRequest, error: Exception) -> JSONResponse:
        return _answer_error(error)

    async def refused(request: HttpRequest, error: Exception) -> JSONResponse:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        told = [f"{'.'.join(map(str, item['loc'][1:])) or 'the body'}: {item['msg']}" for item in problems[:5]]
        where = str(problems[0]["loc"][1]) if problems and len(problems[0]["loc"]) > 1 else None
        return _answer_error(RequestError("; ".join(told)[:2000], where))

    async def http_error(request: HttpRequest, error: Exception) -> JSONResponse:
        status = getattr(error, "status_code", 400)
        return _answer_error(
            RequestError(f"{getattr(error, 'detail', error)}: {request.url.path[:200]}", None, status)
        )

    for kind in (ValueError, TypeError, Exception):
        app.add_exception_handler(kind, failed)
    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(HTTPException, http_error)


class _Events(StreamingResponse):
    """Server-sent events for clients that may stop reading: a part that nobody takes ends the stream."""

    def __init__(self, events: AsyncGenerator[str], write_timeout: float) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self.events, self.write_timeout = events, write_timeout

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        async def send_in_time(message: Any) -> None:
            await asyncio.wait_for(send(message), self.write_timeout)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            logger.warning("A client left its answer unread for %g s; its stream was ended", self.write_timeout)
        finally:
            await self.events.aclose()


class _Guard:
    """Looks at requests before anything of them is read: the host, the key, the kind of content, the size, the time.

    Args:
        app: what answers.
        serving: how the server behaves.
    """

    def __init__(self, app: Any, serving: Serving) -> None:
        self.app, self.serving = app, serving

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Hand a request on with its whole body, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope, {name.lower(): value for name, value in scope["headers"]})
            body = await asyncio.wait_for(self._body(receive), BODY_SECONDS) if scope["method"] == "POST" else b""
        except RequestError as error:
            await _answer_error(error)(scope, receive, send)
            return
        except TimeoutError:
            late = RequestError(f"the request did not arrive within {BODY_SECONDS} s", None, 408)
            await _answer_error(late)(scope, receive, send)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive_whole() -> Any:
            return next(messages, None) or await receive()

        await self.app(scope, receive_whole, send)

    async def _body(self, receive: Any) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            self._check_length(len(body))
        return bytes(body)

    def _check_length(self, size: int) -> None:
        limit = self.serving.limits.body_bytes
        if size > limit:
            raise RequestError(f"the request has {size:,} bytes or more, and {limit:,} are allowed", None, 413)

    def _check(self, scope: Any, headers: dict[bytes, bytes]) -> None:
        """Refuse by what stands in the headers."""
        host = None
        with suppress(ValueError):
            host = urlsplit(f"//{headers.get(b'host', b'').decode('latin-1')}").hostname  # in small letters
        if "*" not in self.serving.hosts and host not in [name.lower() for name in self.serving.hosts]:
            raise RequestError(
                f"the server was called {host!r:.200}, and answers as {', '.join(self.serving.hosts)}; start it with "
                "--allowed-host to add a name",
                None,
                421,
            )
        key = self.serving.api_key
        sent = headers.get(b"authorization", b"")
        if key is not None and scope["path"] != "/health" and not hmac.compare_digest(sent, f"Bearer {key}".encode()):
            raise RequestError("the API key is missing or wrong: send it as 'Authorization: Bearer KEY'", None, 401)
        if scope["method"] != "POST":
            return
        # A page in a browser can send other kinds anywhere without asking, but not JSON.
        if headers.get(b"content-type", b"").split(b";")[0].strip().lower() != b"application/json":
            raise RequestError("the content is not declared as JSON: send 'Content-Type: application/json'", None, 415)
        length = headers.get(b"content-length", b"0")
        self._check_length(int(length) if length.isdigit() else 0)
