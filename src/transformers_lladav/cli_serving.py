"""The commands that put a model before others: `lladav serve` and `lladav web`."""

import ipaddress
import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from .cli_asking import AdapterOption, PresetOption, load_assistant
from .cli_console import CodeOption, DeviceOption, ModelOption, QuantizationOption, err, loading
from .cli_evaluation import SetOption, generation_settings

MEGABYTE = 2**20

HostOption = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
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
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 8000,
    api_key: KeyOption = None,
    allowed_host: HostsOption = [],  # noqa: B006
    preset: PresetOption = None,
    change: SetOption = [],  # noqa: B006
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are answered together.")] = 8,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; others get status 429.")] = 64,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a request, waiting included.")] = 300,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of a request.")] = 512,
    max_pictures: Annotated[int, typer.Option(min=0, help="Pictures of a request.")] = 8,
    max_picture_mb: Annotated[int, typer.Option(min=1, help="Size of a picture file.")] = 20,
    max_megapixels: Annotated[float, typer.Option(min=0.01, help="Size of a picture, decoded.")] = 40,
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


def _run(app: Any, listening: socket.socket, greeting: str, serving: Any) -> None:
    """Serve until Ctrl-C."""
    import uvicorn

    host, port = listening.getsockname()[:2]
    if not is_loopback(host) and serving.api_key is None:
        err.print(Text.assemble(("Warning: ", "yellow"), f"everybody who reaches {host} can ask; see --api-key"))
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    err.print(f"{greeting.format(address=address)} (Ctrl-C ends it)", markup=False, highlight=False, soft_wrap=True)
    # More connections than requests that wait: others are told so instead of waiting for their turn to be told.
    config = uvicorn.Config(
        app, log_level="warning", limit_concurrency=serving.waiting + 128, timeout_graceful_shutdown=5
    )
    uvicorn.Server(config).run(sockets=[listening])


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


def listen(host: str, port: int) -> socket.socket:
    """Take an address before the model is loaded.

    Raises:
        OSError: if it is taken, with the way out.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"{host}:{port} cannot be listened on: {os.strerror(error.errno or 0)}; choose another --port"
        ) from error
