"""The commands that put a question about a picture: `lladav ask`, `score` and `chat`."""

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .cli_console import CodeOption, DeviceOption, JsonOption, ModelOption, QuantizationOption, err, loading, out

SECONDS_PER_STEP = 0.25  # with --watch

AdapterOption = Annotated[
    str | None, typer.Option(metavar="DIR", help="A LoRA adapter; without --model, on the model it was trained on.")
]
PresetOption = Annotated[str | None, typer.Option(help="Settings by name; see `lladav presets`.")]
LengthOption = Annotated[int | None, typer.Option(min=1, help="Length of the answer canvas in tokens.")]
BlockOption = Annotated[int | None, typer.Option(min=1, help="Tokens that are denoised together.")]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Denoising steps over all blocks.")]
TemperatureOption = Annotated[float | None, typer.Option(min=0.0, help="0 takes the likeliest token.")]
TopKOption = Annotated[int | None, typer.Option(min=1, help="With a temperature: sample among so many tokens.")]
TopPOption = Annotated[float | None, typer.Option(help="With a temperature: sample among this much probability.")]
SeedOption = Annotated[int | None, typer.Option(help="Makes --temperature above 0 repeatable.")]
ThresholdOption = Annotated[float | None, typer.Option(help="Write every token that is at least so probable.")]
FactorOption = Annotated[float | None, typer.Option(help="Write the n surest tokens with (n + 1)(1 - p) below this.")]
EntropyOption = Annotated[
    float | None, typer.Option(help="Write tokens whose entropies sum to at most this, in nats.")
]
GuidanceOption = Annotated[
    float | None, typer.Option(min=0.0, help="Weight of picture and prompt against none; 1: off.")
]
NgramOption = Annotated[int | None, typer.Option(min=1, help="Never write so many tokens in a row twice.")]
ChoicesOption = Annotated[str | None, typer.Option(help="The only answers allowed, with commas between: A,B,C,D.")]
FillOption = Annotated[str | None, typer.Option(help="An answer with holes to fill: 'There is a [MASK:1] star.'")]
WatchOption = Annotated[bool, typer.Option("--watch", help="Show every step, slowly, with what is new in green.")]
GifOption = Annotated[Path | None, typer.Option(help="Save how the answer appeared as an animated GIF.")]
HtmlOption = Annotated[Path | None, typer.Option(help="The same as one HTML page to step through.")]


def ask(
    picture: Annotated[str, typer.Argument(help="A picture file or an http(s) URL.")],
    question: Annotated[str, typer.Argument(help="What you want to know about it.")],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    preset: PresetOption = None,
    max_new_tokens: LengthOption = None,
    block_length: BlockOption = None,
    steps: StepsOption = None,
    threshold: ThresholdOption = None,
    factor: FactorOption = None,
    entropy_bound: EntropyOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: SeedOption = None,
    guidance_scale: GuidanceOption = None,
    no_repeat_ngram_size: NgramOption = None,
    choices: ChoicesOption = None,
    fill: FillOption = None,
    watch: WatchOption = False,
    gif: GifOption = None,
    html: HtmlOption = None,
    device: DeviceOption = "auto",
    quantization: QuantizationOption = None,
    trust_remote_code: CodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a QUESTION about a PICTURE and show the answer emerging from its masks."""
    settings = _given(
        preset=preset, max_new_tokens=max_new_tokens, block_length=block_length, max_denoising_steps=steps,
        threshold=threshold, factor=factor, entropy_bound=entropy_bound, temperature=temperature, top_k=top_k,
        top_p=top_p, guidance_scale=guidance_scale, no_repeat_ngram_size=no_repeat_ngram_size,
        choices=_check_ask(choices, fill, watch and as_json, gif, html), generator=_seeded(seed),
    )  # fmt: skip
    with loading(show=not as_json):
        from . import asking

        shown = asking.read_picture(picture)  # before the model: a wrong path should not cost its loading
        assistant = load_assistant(model, device, trust_remote_code, adapter, quantization)
    recorder = asking.record(assistant, fill) if gif or html else None
    with _live_draft(enabled=not as_json and (watch or out.is_terminal), slow=watch) as show:
        answer = _answer(assistant, shown, question, fill, show, recorder, settings)
    if recorder is not None:
        _save_film(asking.film(recorder, shown, question, answer), gif, html)
    if as_json:
        _print_record(answer, picture=picture, question=question, **_chosen(assistant, model, adapter))
    else:
        _print_answer(answer)


def _answer(
    assistant: Any, shown: Any, question: str, fill: str | None, show: Any, recorder: Any, settings: dict[str, Any]
) -> Any:
    """Write an answer, or fill one in."""
    from . import asking

    if fill is not None:
        return asking.fill(assistant, shown, question, fill, show, recorder, **settings)
    return asking.ask(assistant, shown, question, show, recorder, **settings)


def load_assistant(
    model: str | None, device: str, trust_remote_code: bool, adapter: str | None, quantization: str | None = None
) -> Any:
    """Load what answers, and say in a line each what its owner should know."""
    from . import asking

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        assistant = asking.load(model, device, trust_remote_code, adapter, quantization)
    for warning in caught:
        if warning.category is UserWarning:
            err.print(Text.assemble(("Warning: ", "yellow"), str(warning.message)))
    return assistant


def _chosen(assistant: Any, model: str | None, adapter: str | None) -> dict[str, str | None]:
    """What answered, for a record."""
    base = "bundled" if adapter is None else assistant.model.config.name_or_path
    return {"model": model or base, "adapter": adapter}


def _given(**options: Any) -> dict[str, Any]:
    """What a user chose; the rest is left to the checkpoint's own settings."""
    return {name: value for name, value in options.items() if value is not None}


def _print_record(answer: Any, **asked: str | None) -> None:
    print(json.dumps(asked | dataclasses.asdict(answer), ensure_ascii=False))  # noqa: T201


def _print_text(answer: Any) -> None:
    """The words of an answer, without what a terminal would act on."""
    from .streaming import NOT_ON_A_TERMINAL

    out.print(answer.text.translate(NOT_ON_A_TERMINAL) or "(no answer)", markup=False, highlight=False, style="bold")


def _print_answer(answer: Any) -> None:
    _print_text(answer)
    passes = f"{answer.denoising_steps} forward passes, {answer.tokens_per_forward:g} tokens per forward"
    full = answer.finish_reason == "length"
    out.print(f"{passes}; the canvas is full: raise --max-new-tokens" if full else passes, style="dim")


def _check_ask(
    choices: str | None, fill: str | None, both_views: bool, gif: Path | None, html: Path | None
) -> list[str] | None:
    """Refuse options that do not go together before anything is loaded; returns the choices, one by one."""
    if choices is not None and fill is not None:
        raise ValueError("--choices and --fill were both given; a hole has no list of answers, so leave one out")
    if both_views:
        raise ValueError("--watch and --json were both given; leave one out")
    for path, suffixes in ((gif, (".gif",)), (html, (".html", ".htm"))):
        if path is not None and path.suffix.lower() not in suffixes:
            raise ValueError(f"{path} does not end in {' or '.join(suffixes)}")
    if choices is None:
        return None
    named = [choice.strip() for choice in choices.split(",") if choice.strip()]
    if not named:
        raise ValueError(f"--choices {choices!r} names no answer; give some with commas between, such as A,B,C,D")
    return named


def _seeded(seed: int | None) -> Any:
    if seed is None:
        return None
    import torch

    return torch.Generator().manual_seed(seed)


def _save_film(film: Any, gif: Path | None, html: Path | None) -> None:
    for path, save in ((gif, film.save_gif), (html, film.save_html)):
        if path is not None:
            save(path)
            err.print(f"Saved {path}", style="dim")


def score(
    picture: Annotated[str, typer.Argument(help="A picture file or an http(s) URL.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    answer: Annotated[list[str], typer.Option(help="An answer to rate; repeat it for each.")],
    samples: Annotated[int, typer.Option(min=1, help="Masks drawn per answer.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    device: DeviceOption = "auto",
    trust_remote_code: CodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rate given answers by their likelihood (Monte-Carlo estimate), best first."""
    with loading(show=not as_json):
        from . import asking

        shown = asking.read_picture(picture)
        assistant = load_assistant(model, device, trust_remote_code, adapter)
    rated = asking.score(assistant, shown, question, answer, num_samples=samples, seed=seed)
    if as_json:
        print(json.dumps([dataclasses.asdict(item) for item in rated], ensure_ascii=False))  # noqa: T201
        return
    table = Table("answer", "log-likelihood", "standard error", "per token", "share")
    for item in rated:
        error = "exact" if item.exact else f"{item.standard_error:.2f}"
        figures = (f"{item.log_likelihood:z.3f}", error, f"{item.per_token:z.3f}", f"{item.share:.1%}")
        table.add_row(Text(item.text), *figures)
    out.print(table)


def chat(
    picture: Annotated[list[str] | None, typer.Argument(help="Picture files or http(s) URLs to talk about.")] = None,
    model: ModelOption = None,
    adapter: AdapterOption = None,
    preset: PresetOption = None,
    max_new_tokens: LengthOption = None,
    block_length: BlockOption = None,
    steps: StepsOption = None,
    threshold: ThresholdOption = None,
    device: DeviceOption = "auto",
    trust_remote_code: CodeOption = False,
) -> None:
    """Talk about a PICTURE; /image adds more, /save keeps the conversation, /help lists the commands."""
    settings = _given(
        preset=preset, max_new_tokens=max_new_tokens, block_length=block_length, max_denoising_steps=steps,
        threshold=threshold,
    )  # fmt: skip
    with loading():
        from . import asking, chatting

        pictures = [asking.read_picture(source) for source in picture or []]
        assistant = load_assistant(model, device, trust_remote_code, adapter)
    talk = chatting.Chat(assistant, **settings)
    talk.start_with(zip(picture or [], pictures, strict=True))
    err.print("Ask something; /help lists the commands, /quit leaves.", style="dim")
    while (line := _read_line()) is not None:
        try:
            if line.startswith("/"):
                told = chatting.command(talk, line)
                if told is None:
                    return
                err.print(told, markup=False, highlight=False, style="dim")
            elif line:
                with _live_draft(enabled=out.is_terminal) as show:
                    answer = talk.send(line, show)
                _print_text(answer)
        except (ValueError, TypeError, OSError, ImportError) as error:
            err.print(Text.assemble(("Error: ", "bold red"), str(error)))


def _read_line() -> str | None:
    """The next line a user types, without the spaces around it; None at the end of input."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  # arrow keys and history
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


@contextmanager
def _live_draft(enabled: bool, slow: bool = False) -> Iterator[Callable[[Any], None] | None]:
    """Show drafts in place while they change, or line by line where the output is no terminal."""
    if not enabled:
        yield None
        return
    from .streaming import paragraph

    if not out.is_terminal:
        yield lambda draft: out.print(paragraph(draft), soft_wrap=True)
        return
    with Live(console=out, transient=True, auto_refresh=False) as live:

        def show(draft: Any) -> None:
            live.update(paragraph(draft), refresh=True)
            if slow:
                time.sleep(SECONDS_PER_STEP)

        yield show
