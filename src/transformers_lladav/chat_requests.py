"""Requests in OpenAI's format for chat completions, and what of them a masked-diffusion model can honour.

Format: https://platform.openai.com/docs/api-reference/chat/create. Everything that is not known, or cannot be
honoured, is refused with the reason; nothing that a request names is opened or fetched unless that is switched on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from .assistant import Assistant
from .eval_asking import Asking, resolve_generation
from .opening_lladav import TooManyBytesError, fetch, read_data_url
from .presets_lladav import find_preset
from .untrusted_pictures import TooLargeError, decode_untrusted, open_untrusted

try:
    from pydantic import BaseModel, ConfigDict, Field, model_validator
except ImportError as error:
    raise ImportError("the server needs FastAPI: pip install 'transformers_lladav[serve]'") from error

FETCH_SECONDS = 10

# Fields of the format that a client may send if they ask for nothing: name -> (harmless values, why not others).
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "one answer is given per request; send the request again, with another seed"),
    "frequency_penalty": ((0,), "there is no next token to penalise; use no_repeat_ngram_size"),
    "presence_penalty": ((0,), "there is no next token to penalise; use no_repeat_ngram_size"),
    "logit_bias": (({},), "logits are not changed by request"),
    "logprobs": ((False,), "tokens are not written one after the other, so that they have no such probabilities"),
    "top_logprobs": ((0,), "tokens are not written one after the other, so that they have no such probabilities"),
    "response_format": (({"type": "text"},), "the model cannot be held to a format"),
    "modalities": ((["text"],), "the model answers in text"),
    "tools": (([],), "the model was not taught to call tools"),
    "tool_choice": (("none", "auto"), "the model was not taught to call tools"),
    "parallel_tool_calls": ((True, False), "the model was not taught to call tools"),
}
# Fields that say something about the caller and nothing about the answer.
LABELS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")

# Settings of `generate` that a request may carry beside OpenAI's own; those that compile or change shapes are the
# server's business.
SETTINGS = (
    "block_length", "max_denoising_steps", "threshold", "factor", "entropy_bound", "remasking", "top_k",
    "guidance_scale", "stability_threshold", "confidence_threshold", "prompt_refresh_interval", "use_cache",
    "live_prompt_length", "no_repeat_ngram_size",
)  # fmt: skip


class RequestError(ValueError):
    """What is wrong with a request.

    Args:
        message: the value, the rule and the fix.
        param: the field it is about.
        status: of the HTTP answer.
    """

    def __init__(self, message: str, param: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.param, self.status = param, status


@dataclass(frozen=True)
class Limits:
    """How much one request may ask for.

    Attributes:
        tokens: length of the answer canvas.
        messages: in the chat.
        stops: texts that end the answer; each is looked for after every step.
        pictures: in the whole chat.
        picture_bytes: of one picture, encoded.
        pixels: of one picture.
        characters: of all texts together, those that end the answer included.
        body_bytes: of the request as it comes.
        allow_urls: whether pictures may be http(s) URLs, which the server then fetches from its own network.
    """

    tokens: int = 512
    messages: int = 1000
    stops: int = 16
    pictures: int = 8
    picture_bytes: int = 20 * 2**20
    pixels: int = 40_000_000
    characters: int = 200_000
    body_bytes: int = 64 * 2**20
    allow_urls: bool = False


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Clients send earlier answers back with everything that an answer does not have as null."""
        return (
            {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given
        )


class TextPart(_Strict):
    """Words of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where a picture is, and how closely to look at it: "low" shows one tile of it."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(_Strict):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart | ImagePart]


class StreamOptions(_Strict):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ChatRequest(BaseModel):
    """A request for a chat completion; settings of `generate` and the harmless fields are in `model_extra`."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    preset: str | None = None
    include_drafts: bool = False


@dataclass(frozen=True)
class Settings:
    """How a request is answered.

    Attributes:
        generation: arguments of `generate`.
        preset: settings by name.
        max_tokens: the answer is cut to so many tokens; the canvas is a multiple of the block and may be longer.
        stops: texts that end the answer, whoever named them: the request, the server, a preset or the checkpoint.
    """

    generation: dict[str, Any]
    preset: str | None
    max_tokens: int
    stops: tuple[str, ...] = ()


def read_settings(request: ChatRequest, assistant: Assistant, defaults: Asking, limits: Limits) -> Settings:
    """What a request asks of the loop, checked.

    Args:
        request: as it came.
        assistant: that answers.
        defaults: settings of the server, which the request changes.
        limits: on the length of the canvas, and on what ends it.

    Returns:
        The settings.

    Raises:
        RequestError: for a field that is not known or cannot be honoured, and for values that break a rule.
    """
    extra = dict(_extra_settings(request.model_extra or {}))
    if request.max_tokens and request.max_completion_tokens and request.max_tokens != request.max_completion_tokens:
        raise RequestError(
            f"max_tokens={request.max_tokens} and max_completion_tokens={request.max_completion_tokens} disagree; "
            "they mean the same, so give one of them",
            "max_tokens",
        )
    for name in ("stream_options", "include_drafts"):
        if getattr(request, name) and not request.stream:
            raise RequestError(f"{name} says something about a stream; send stream=true as well", name)
    stops = _stops(request)
    if len(stops) > limits.stops:
        raise RequestError(
            f"{len(stops)} texts that end an answer are more than the {limits.stops} that are allowed; send fewer",
            "stop",
        )
    top_p = request.top_p if request.top_p != 1 else None  # clients send 1 where they mean nothing by it
    given = {"temperature": request.temperature, "top_p": top_p, "stop_strings": stops or None}
    preset = request.preset or defaults.preset
    # Among the extra settings null says something: prompt_refresh_interval=null is a single look at the prompt.
    generation = {
        **defaults.generation,
        **{name: value for name, value in given.items() if value is not None},
        **extra,
    }
    wanted = request.max_completion_tokens or request.max_tokens
    try:
        return _fitted(assistant, generation, preset, wanted, limits)
    except RequestError:
        raise
    except (TypeError, ValueError) as error:
        raise RequestError(str(error)) from error


def _stops(request: ChatRequest) -> list[str]:
    return [request.stop] if isinstance(request.stop, str) else request.stop or []


def _extra_settings(extra: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in extra.items():
        if name in SETTINGS:
            yield name, value
        elif name in NEUTRAL:
            harmless, reason = NEUTRAL[name]
            if value is not None and value not in harmless:
                raise RequestError(f"{name}={value!r:.200} cannot be honoured: {reason}", name)
        elif name not in LABELS:
            known = ", ".join((*ChatRequest.model_fields, *SETTINGS))
            raise RequestError(f"{name!r:.200} is not a field of a request here; known are {known}", name[:200])


def _fitted(
    assistant: Assistant, generation: dict[str, Any], preset: str | None, wanted: int | None, limits: Limits
) -> Settings:
    """Settings with a canvas that holds the tokens that are wanted, and whole blocks."""
    generation = dict(generation)
    if wanted is not None:
        own = find_preset(preset).settings if preset is not None else {}
        configured = own.get("block_length", assistant.model.generation_config.block_length)
        block = generation.get("block_length", configured)
        whole = isinstance(block, int) and block > 0  # anything else is explained below
        generation["max_new_tokens"] = -(-wanted // block) * block if whole else wanted
    resolved = resolve_generation(assistant.model, Asking(generation, preset))
    canvas = resolved.get("max_new_tokens") or assistant.model.generation_config.schedule()[0]
    if canvas > limits.tokens:
        raise RequestError(
            f"an answer of {canvas} tokens is longer than the {limits.tokens} that are allowed; lower max_tokens",
            "max_tokens",
        )
    stops = resolved.get("stop_strings") or ()
    return Settings(generation, preset, wanted or canvas, (stops,) if isinstance(stops, str) else tuple(stops))


def read_messages(request: ChatRequest, limits: Limits, tile: int) -> Callable[[], list[dict[str, Any]]]:
    """The chat of a request.

    Pictures stay encoded until the chat is asked for, so that those of waiting requests take little memory; what
    their headers say is checked at once.

    Args:
        request: as it came.
        limits: on texts and pictures.
        tile: pixels of a tile's side, to which pictures of low detail are shrunk.

    Returns:
        A function that gives messages as the processor takes them; it raises `RequestError` for pictures that cannot
        be decoded.

    Raises:
        RequestError: if there is too much of something, or a picture cannot be one.
    """
    if request.messages[-1].role != "user":
        raise RequestError(
            f"the last message is from the {request.messages[-1].role!r}; end with a message of the user", "messages"
        )
    if len(request.messages) > limits.messages:
        raise RequestError(
            f"{len(request.messages):,} messages are more than the {limits.messages:,} that are allowed",
            "messages",
            413,
        )
    parts = [_parts(message) for message in request.messages]
    characters = sum(len(part.text) for message in parts for part in message if isinstance(part, TextPart))
    characters += sum(map(len, _stops(request)))
    if characters > limits.characters:
        raise RequestError(
            f"the texts have {characters:,} characters, more than the {limits.characters:,} that are allowed",
            "messages",
            413,
        )
    if not any(part.text.strip() for part in parts[-1] if isinstance(part, TextPart)):
        raise RequestError("the last message has no text; ask something about the picture", "messages")
    pictures = [part.image_url for message in parts for part in message if isinstance(part, ImagePart)]
    if len(pictures) > limits.pictures:
        raise RequestError(
            f"{len(pictures)} pictures are more than the {limits.pictures} that are allowed", "messages", 413
        )
    encoded = {id(url): _Encoded(url, f"picture {number}", limits) for number, url in enumerate(pictures, start=1)}

    def messages() -> list[dict[str, Any]]:
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if isinstance(part, TextPart)
                    else {"type": "image", "image": encoded[id(part.image_url)].decode(tile)}
                    for part in content
                ],
            }
            for message, content in zip(request.messages, parts, strict=True)
        ]

    return messages


def _parts(message: Message) -> list[TextPart | ImagePart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    if message.role != "user" and any(isinstance(part, ImagePart) for part in message.content):
        raise RequestError(f"a message of role {message.role!r} shows a picture; only users can", "messages")
    return message.content


class _Encoded:
    """A picture as it came, its header checked.

    Args:
        source: where it is.
        name: what messages call it.
        limits: on its size.
    """

    def __init__(self, source: ImageUrl, name: str, limits: Limits) -> None:
        self.name, self.detail, self.limits = name, source.detail, limits
        self.content = self._read(source.url)
        with _explained():
            open_untrusted(self.content, self.name, limits.pixels)

    def _read(self, url: str) -> bytes:
        if url[:11].lower() == "data:image/":
            size = (len(url) - url.find(",") - 1) * 3 // 4
            if size > self.limits.picture_bytes + 2:
                raise self._too_large(size)
            try:
                return read_data_url(url)
            except OSError as error:
                raise RequestError(f"{self.name}: {error}", "messages") from error
        shown = url if len(url) <= 80 else f"{url[:80]}..."
        if not url.lower().startswith(("http://", "https://")):
            raise RequestError(
                f"{self.name} is {shown!r}; give data:image/png;base64,... (files of this machine are not opened)",
                "messages",
            )
        if not self.limits.allow_urls:
            raise RequestError(
                f"{self.name} is the URL {shown!r}, and this server fetches nothing; send the picture itself as "
                "data:image/png;base64,..., or start the server with --allow-urls",
                "messages",
            )
        try:
            return fetch(url, self.limits.picture_bytes, FETCH_SECONDS)
        except TooManyBytesError as error:
            raise self._too_large(self.limits.picture_bytes + 1) from error
        except OSError as error:
            raise RequestError(f"{self.name} cannot be fetched from {shown!r}: {error}", "messages") from error

    def _too_large(self, size: int) -> RequestError:
        return RequestError(
            f"{self.name} has {size:,} bytes or more, and {self.limits.picture_bytes:,} are allowed; shrink it",
            "messages",
            413,
        )

    def decode(self, tile: int) -> Image.Image:
        """The picture, upright; of low detail, no larger than a tile."""
        with _explained():
            picture = decode_untrusted(self.content, self.name, self.limits.pixels)
        if self.detail == "low":
            picture.thumbnail((tile, tile))
        return picture


@contextmanager
def _explained() -> Iterator[None]:
    """What is wrong with a picture, as an answer to the request."""
    try:
        yield
    except TooLargeError as error:
        raise RequestError(str(error), "messages", 413) from error
    except ValueError as error:
        raise RequestError(str(error), "messages") from error
