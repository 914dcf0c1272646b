"""The `lladav` command: thin handlers, some in `cli_*.py`; everything heavy is imported when a command runs."""

import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from .cli_adapters import merge
from .cli_asking import ask, chat, score
from .cli_console import DeviceOption, JsonOption, ModelOption, err, loading, out
from .cli_data import data_app
from .cli_publishing import push
from .cli_training import train_app

app = typer.Typer(
    name="lladav",
    help="Ask questions about pictures with LLaDA-V, a masked-diffusion vision-language model.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
for command in (ask, chat, score, merge, push):
    app.command()(command)


def main() -> None:
    """Run the command line; what users can put right is reported in a line, without a trace."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")
    with user_errors():
        app()


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that users can put right into a line on stderr and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError, ImportError) as error:
        if os.environ.get("LLADAV_TRACE"):
            raise
        err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
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
    with loading():
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

    with loading():
        assistant = asking.load(model, device)
    results = {}
    for name in split:

        def progress(starts: Iterable[int], name: str = name) -> Iterable[int]:
            return track(list(starts), description=f"{name}", console=err)

        results[name] = ev.evaluate(
            assistant.model, assistant.processor, name, questions, batch_size, progress=progress
        )
        table = Table("kind", "questions", "exact match", "95 % interval", "wrong picture", title=name)
        for row in results[name]:
            low, high = row.interval
            blind = f"{row.blind_correct / row.questions:.1%}"
            table.add_row(row.kind, str(row.questions), f"{row.accuracy:.1%}", f"{low:.1%} .. {high:.1%}", blind)
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

    from .recipe_changes import change_recipe
    from .recipes import TinyRecipe
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
