"""The commands that put a model before others: `lladav serve` and `lladav web`."""

import errno
import ipaddress
import signal
import socket
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from .cli_asking import AdapterOption, PresetOption, load_assistant
from .cli_console import CodeOption, DeviceOption, ModelOption, QuantizationOption, err, loading
from .cli_evaluation import SetOption, generation_settings

MEGABYTE = 2**20

HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
PortOption = Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")]
FileSizeOption = Annotated[int, typer.Option(min=1, help="Size of a picture file.")]
PixelsOption = Annotated[float, typer.Option(min=0.01, help="Size of a picture, decoded.")]
KeyOption = Annotated[
    str | None, typer.Option(envvar="LLADAV_API_KEY", show_envvar=True, help="What clients must send as bearer.")
]
HostsOption = Annotated[
    list[str], typer.Option("--allowed-host", metavar="NAME", help="A name the server may be called by; '*' for all.")
]


def serve(
    model: ModelOption = None,
    adapter: AdapterOption = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model; the folder's name.")] = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key: KeyOption = None,
    allowed_host: HostsOption = [],  # noqa: B006
    preset: PresetOption = None,
    change: SetOption = [],  # noqa: B006
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are answered together.")] = 8,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; others get status 429.")] = 64,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a request, waiting included.")] = 300,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of a request.")] = 512,
    max_pictures: Annotated[int, typer.Option(min=0, help="Pictures of a request.")] = 8,
    max_picture_mb: FileSizeOption = 20,
    max_megapixels: PixelsOption = 40,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures that requests name by URL, from the server's network.")
    ] = False,
    device: DeviceOption = "auto",
    quantization: QuantizationOption = None,
    trust_remote_code: CodeOption = False,
) -> None:
    """Answer chat completions in OpenAI's format over HTTP.

    Requests may add settings of generate() (block_length, threshold, preset ...) to the usual fields; --preset and
    --set are what they get without.
    """
    listening = listen(host, port)  # before the model: an address that is taken should not cost its loading
    with loading():
        from .chat_requests import Limits
        from .eval_asking import Asking, resolve_generation
        from .server import LOOPBACK, Serving, create_app

        assistant = load_assistant(model, device, trust_remote_code, adapter, quantization)
        limits = Limits(
            tokens=max_tokens, pictures=max_pictures, picture_bytes=max_picture_mb * MEGABYTE,
            pixels=int(max_megapixels * 1e6), body_bytes=(max_pictures * max_picture_mb * 4 // 3 + 1) * MEGABYTE,
            allow_urls=allow_urls,
        )  # fmt: skip
        how = Asking(generation_settings({}, change), preset, batch_size=batch_size)
        resolve_generation(assistant.model, how)  # a wrong setting should not wait for the first request
        names = (*LOOPBACK, host, *allowed_host) if is_loopback(host) else tuple(allowed_host) or ("*",)
        called = name or served_name(model, adapter)
        serving = Serving(called, how, limits, waiting, timeout, api_key=api_key, hosts=names)
        app = create_app(assistant, serving)
    _run(app, listening, f"{called} answers at {{address}}/v1", serving)


def web(
    model: Annotated[
        list[str],
        typer.Option("--model", "-m", help="Folder or Hub id; the bundled one by default; repeat it for a choice."),
    ] = [],  # noqa: B006
    adapter: Annotated[
        list[str], typer.Option(metavar="DIR", help="A LoRA adapter that visitors may switch on; repeatable.")
    ] = [],  # noqa: B006
    host: HostOption = "127.0.0.1",
    port: PortOption = 7860,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="NAME:PASSWORD", envvar="LLADAV_WEB_AUTH", show_envvar=True, help="What visitors must give."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    max_picture_mb: FileSizeOption = 20,
    max_megapixels: PixelsOption = 40,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are answered together.")] = 8,
    waiting: Annotated[int, typer.Option(min=1, help="Questions that may wait.")] = 32,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for an answer, waiting included.")] = 120,
    device: DeviceOption = "auto",
    quantization: QuantizationOption = None,
    trust_remote_code: CodeOption = False,
) -> None:
    """Open a page in which a picture is shown, questions are asked, and answers come out of their masks.

    Only this machine reaches it, unless --host says otherwise; give --auth then.
    """
    visitors = None if auth is None else read_auth(auth)
    port = free_port(host, port)
    with loading():
        from . import web as page
        from .web_talk import Queues, Site

        site = Site(
            models={
                name: partial(load_assistant, source, device, trust_remote_code, None, quantization)
                for name, source in _named(model or [None]).items()
            },
            adapters={name: str(source) for name, source in _named(adapter).items()},
            max_tokens=max_tokens, picture_bytes=max_picture_mb * MEGABYTE, pixels=int(max_megapixels * 1e6),
            waiting=waiting, timeout=timeout, batch_size=batch_size, examples=not model,
        )  # fmt: skip
        (queues := Queues(site)).get(next(iter(site.models)))
        address = page.launch(site, queues, host, port, visitors).local_url
    _warn_of_open_door(host, visitors, "--auth")
    err.print(f"Open {address} in a browser (Ctrl-C ends it)", markup=False, highlight=False, soft_wrap=True)
    try:
        wait()
    finally:
        queues.close()


def _named(sources: Sequence[str | None]) -> dict[str, str | None]:
    """Models or adapters by what they are called on the page."""
    named = {served_name(source, None): source for source in sources}
    if len(named) < len(sources):
        raise ValueError(f"of {', '.join(map(str, sources))} two have the same name; rename one of the folders")
    return named


def wait() -> None:
    """Leave the work to other threads until Ctrl-C or SIGTERM, after which what the page made is removed."""
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    try:
        ended.wait()
    finally:
        signal.signal(signal.SIGTERM, before)


def read_auth(text: str) -> tuple[str, str]:
    """The name and the password of --auth.

    Raises:
        ValueError: if one is missing.
    """
    name, _, password = text.partition(":")
    if not name or not password:
        raise ValueError("--auth needs a name and a password, with a colon between: --auth me:secret")
    return name, password


def _run(app: Any, listening: socket.socket, greeting: str, serving: Any) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    host, port = listening.getsockname()[:2]
    _warn_of_open_door(host, serving.api_key, "--api-key")
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    err.print(f"{greeting.format(address=address)} (Ctrl-C ends it)", markup=False, highlight=False, soft_wrap=True)
    # More connections than requests that wait: others are told so instead of waiting for their turn to be told.
    config = uvicorn.Config(
        app, log_level="warning", limit_concurrency=serving.waiting + 128, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listening])


def _warn_of_open_door(host: str, secret: Any, option: str) -> None:
    if not is_loopback(host) and secret is None:
        err.print(Text.assemble(("Warning: ", "yellow"), f"everybody who reaches {host} can ask; see {option}"))


def served_name(model: str | None, adapter: str | None) -> str:
    """What requests call a model if nobody chose a name."""
    chosen = adapter or model
    if chosen is None:
        return "lladav-bundled"
    return Path(chosen).resolve().name if Path(chosen).is_dir() else chosen


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(host: str, port: int) -> int:
    """A port that can be listened on, before the model is loaded; 0 is any.

    Raises:
        OSError: as of `listen`.
    """
    with listen(host, port) as probe:
        found: int = probe.getsockname()[1]
    return found


def listen(host: str, port: int) -> socket.socket:
    """Take an address before the model is loaded.

    Raises:
        OSError: if it is taken, or not one of this machine, with the way out.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]  # `create_server` adds what it tried
        elsewhere = error.errno in (errno.EADDRNOTAVAIL, socket.EAI_NONAME)
        raise OSError(
            f"{host}:{port} cannot be listened on: {reason}; choose another {'--host' if elsewhere else '--port'}"
        ) from error
