"""The `lladav` command: thin handlers; everything heavy is imported when a command runs."""

import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import track
from rich.table import Table
from rich.text import Text

app = typer.Typer(
    name="lladav",
    help="Ask questions about pictures with LLaDA-V, a masked-diffusion vision-language model.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train a model.", no_args_is_help=True)
app.add_typer(train_app, name="train")
out, err = Console(), Console(stderr=True)
SECONDS_PER_STEP = 0.25  # with --watch

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Folder or Hub id of a checkpoint; by default the bundled one.")
]
DeviceOption = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1', 'mps' ...")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
CodeOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the checkpoint brings along.")]
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


def main() -> None:
    """Run the command line; what users can put right is reported in a line, without a trace."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with user_errors():
        app()


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that users can put right into a line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("LLADAV_TRACE"):
            raise
        err.print(Text.assemble(("Error: ", "bold red"), str(error)))
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("Interrupted.")
        sys.exit(130)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        out.print(installed("transformers_lladav"))
        raise typer.Exit


@app.command()
def ask(
    picture: Annotated[str, typer.Argument(help="A picture file or an http(s) URL.")],
    question: Annotated[str, typer.Argument(help="What you want to know about it.")],
    model: ModelOption = None,
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
    with _loading(show=not as_json):
        from . import asking

        shown = asking.read_picture(picture)  # before the model: a wrong path should not cost its loading
        assistant = asking.load(model, device, trust_remote_code)
    recorder = asking.record(assistant, fill) if gif or html else None
    with _live_draft(enabled=not as_json and (watch or out.is_terminal), slow=watch) as show:
        if fill is not None:
            answer = asking.fill(assistant, shown, question, fill, show, recorder, **settings)
        else:
            answer = asking.ask(assistant, shown, question, show, recorder, **settings)
    if recorder is not None:
        _save_film(asking.film(recorder, shown, question, answer), gif, html)
    if as_json:
        record = {"picture": picture, "question": question, "model": model or "bundled", **dataclasses.asdict(answer)}
        print(json.dumps(record, ensure_ascii=False))  # noqa: T201
        return
    _print_answer(answer)


def _given(**options: Any) -> dict[str, Any]:
    """What a user chose; the rest is left to the checkpoint's own settings."""
    return {name: value for name, value in options.items() if value is not None}


def _print_answer(answer: Any) -> None:
    out.print(answer.text or "(no answer)", markup=False, highlight=False, style="bold")
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


@app.command()
def presets(as_json: JsonOption = False) -> None:
    """List settings by name: speed, and those of the paper's benchmarks."""
    from .presets_lladav import PRESETS

    if as_json:
        print(json.dumps({name: dataclasses.asdict(preset) for name, preset in PRESETS.items()}))  # noqa: T201
        return
    table = Table("preset", "tokens / block / steps", "other", "tag", "for", box=None, pad_edge=False)
    for name, preset in PRESETS.items():
        lengths = [preset.settings.get(key) for key in ("max_new_tokens", "block_length", "max_denoising_steps")]
        shown_keys = ("threshold", "stop_strings")
        other = [f"{key}={preset.settings[key]!r}" for key in shown_keys if preset.settings.get(key)]
        shown = " / ".join(map(str, lengths)) if lengths[0] else ""
        table.add_row(name, shown, ", ".join(other), preset.tag or "", preset.description)
    out.print(table)
    out.print("A tag goes after the question. The benchmarks are as in the LLaDA-V paper.", style="dim")


@app.command()
def score(
    picture: Annotated[str, typer.Argument(help="A picture file or an http(s) URL.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    answer: Annotated[list[str], typer.Option(help="An answer to rate; repeat it for each.")],
    samples: Annotated[int, typer.Option(min=1, help="Masks drawn per answer.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the masks.")] = 0,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    trust_remote_code: CodeOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rate given answers by their likelihood (Monte-Carlo estimate), best first."""
    with _loading(show=not as_json):
        from . import asking

        shown = asking.read_picture(picture)
        assistant = asking.load(model, device, trust_remote_code)
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


@app.command()
def chat(
    picture: Annotated[list[str] | None, typer.Argument(help="Picture files or http(s) URLs to talk about.")] = None,
    model: ModelOption = None,
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
    with _loading():
        from . import asking, chatting

        pictures = [asking.read_picture(source) for source in picture or []]
        assistant = asking.load(model, device, trust_remote_code)
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
                out.print(answer.text or "(no answer)", markup=False, highlight=False, style="bold")
        except (ValueError, OSError) as error:
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
def _loading(show: bool = True) -> Iterator[None]:
    """One status line on a terminal in place of the bars of transformers."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if not show:
        yield
        return
    with err.status("Loading the model ..."):
        yield


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


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the picture and the card.")] = Path("demo_out"),
    scene: Annotated[int | None, typer.Option(min=0, max=99_999, help="Which scene; a random one by default.")] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw a scene the bundled checkpoint never saw, ask about it and compare with the truth."""
    import random

    from . import asking, scenes
    from .demo import answer_card, run_demo

    index = random.randrange(100_000) if scene is None else scene
    with _loading():
        assistant = asking.load(model, device)
    drawn, rows = run_demo(assistant, index)
    output.mkdir(parents=True, exist_ok=True)
    picture_file, card_file = output / f"scene-{index}.png", output / f"scene-{index}-answers.png"
    picture = scenes.render(drawn, 512)
    picture.save(picture_file)
    answer_card(picture, rows).save(card_file)
    out.print(f"Picture: {picture_file} (scene {index}; repeat with --scene {index})")
    table = Table("question", "true answer", "model's answer", "tokens / forward", show_lines=True)
    for row in rows:
        style = "green" if row.right else "red"
        table.add_row(row.question, row.expected, Text(row.given, style=style), f"{row.tokens_per_forward:.2f}")
    out.print(table)
    out.print(f"{sum(row.right for row in rows)} of {len(rows)} right. Picture with answers: {card_file}")


@app.command("eval")
def evaluate(
    model: ModelOption = None,
    split: Annotated[list[str], typer.Option(help="Split of the scenes; can be repeated.")] = ["test"],  # noqa: B006
    questions: Annotated[int, typer.Option(min=7, help="Questions per split, spread evenly over the kinds.")] = 700,
    batch_size: Annotated[int, typer.Option(min=1)] = 50,
    output: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure exact match per kind of question, beside the blind baseline (the same questions, wrong pictures)."""
    from . import asking
    from . import evaluation as ev

    with _loading():
        assistant = asking.load(model, device)
    results = {}
    for name in split:

        def progress(starts: Iterable[int], name: str = name) -> Iterable[int]:
            return track(list(starts), description=f"{name}", console=err)

        results[name] = ev.evaluate(
            assistant.model, assistant.processor, name, questions, batch_size, progress=progress
        )
        table = Table("kind", "questions", "exact match", "95 % interval", "wrong picture", title=name)
        for score in results[name]:
            low, high = score.interval
            blind = f"{score.blind_correct / score.questions:.1%}"
            table.add_row(score.kind, str(score.questions), f"{score.accuracy:.1%}", f"{low:.1%} .. {high:.1%}", blind)
        out.print(table)
    if output is not None:
        splits = " ".join(f"--split {name}" for name in split)
        command = f"lladav eval {splits} --questions {questions}"
        ev.write_result(output, results, command, {"model": model or "bundled"})
        out.print(f"Result written to {output}")


@train_app.command("tiny")
def train_tiny(
    run: Annotated[Path, typer.Option(help="Folder for state and log; a run found there is continued.")] = Path(
        "runs/tiny"
    ),
    output: Annotated[Path, typer.Option(help="Folder for the finished checkpoint.")] = Path("runs/tiny/checkpoint"),
    change: Annotated[
        list[str], typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of the recipe; can be repeated.")
    ] = [],  # noqa: B006
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all by default.")] = None,
) -> None:
    """Train the bundled checkpoint from scratch on procedural scenes; interrupted runs go on where they were."""
    import torch

    from .recipes import TinyRecipe, change_recipe
    from .train_tiny import TinyTrainer, export

    if threads is not None:
        torch.set_num_threads(threads)
    recipe = change_recipe(TinyRecipe(), change)
    trainer = TinyTrainer(recipe, run)
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    err.print(f"{parameters:,} parameters on {trainer.device}; step {trainer.step} of {recipe.steps}")
    run.mkdir(parents=True, exist_ok=True)
    with (run / "log.jsonl").open("a", encoding="utf-8") as log_file:

        def log(record: dict[str, Any]) -> None:
            log_file.write(json.dumps(record) + "\n")
            log_file.flush()
            err.print(_log_line(record), highlight=False)

        trainer.run(log)
    export(trainer, output)
    out.print(f"Checkpoint written to {output}; try: lladav ask PICTURE QUESTION --model {output}")


def _log_line(record: dict[str, Any]) -> str:
    head = f"step {record['step']:>6}  {record['seconds'] / 60:6.1f} min"
    if "loss" in record:
        return f"{head}  loss {record['loss']:.3f}"
    shares = [f"{kind} {seen:.0%} (blind {blind:.0%})" for kind, (seen, blind) in record["validation"].items()]
    return f"{head}  " + ", ".join(shares)
