"""The `lladav` command: thin handlers, some in `cli_*.py`; everything heavy is imported when a command runs."""

import dataclasses
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from .cli_adapters import merge
from .cli_asking import ask, chat, score
from .cli_batch import batch
from .cli_bench import bench
from .cli_console import DeviceOption, JsonOption, ModelOption, err, loading, out
from .cli_data import data_app
from .cli_evaluation import evaluate
from .cli_paper_table import paper_table
from .cli_publishing import push
from .cli_serving import serve, web
from .cli_tiny import tiny
from .cli_training import train_app

app = typer.Typer(
    name="lladav",
    help="Ask questions about pictures with LLaDA-V, a masked-diffusion vision-language model.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
train_app.command("tiny")(tiny)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
for command in (ask, chat, score, web, serve, batch, merge, push, bench):
    app.command()(command)
app.command("eval")(evaluate)
app.command("paper-table")(paper_table)


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
        defaults = {"threshold": None, "stop_strings": None, "prompt_refresh_interval": 1}
        chosen = {key: preset.settings.get(key, default) for key, default in defaults.items()}
        other = [f"{key}={value!r}" for key, value in chosen.items() if value != defaults[key]]
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

    from . import asking
    from .demo import answer_card, run_demo
    from .files import save_picture
    from .shape_scenes import render_scene
    from .streaming import NOT_ON_A_TERMINAL

    index = random.randrange(100_000) if scene is None else scene
    with loading():
        assistant = asking.load(model, device)
    drawn, rows = run_demo(assistant, index)
    picture_file, card_file = output / f"scene-{index}.png", output / f"scene-{index}-answers.png"
    picture = render_scene(drawn, 512)
    save_picture(picture, picture_file)
    save_picture(answer_card(picture, rows), card_file)
    # As text, since what stands in square brackets in a path is no markup.
    out.print(Text(f"Picture: {picture_file} (scene {index}; repeat with --scene {index})"))
    table = Table("question", "true answer", "model's answer", "tokens / forward", show_lines=True)
    for row in rows:
        style = "green" if row.right else "red"
        given = Text(row.given.translate(NOT_ON_A_TERMINAL), style=style)
        table.add_row(row.question, row.expected, given, f"{row.tokens_per_forward:.2f}")
    out.print(table)
    out.print(Text(f"{sum(row.right for row in rows)} of {len(rows)} right. Picture with answers: {card_file}"))
