"""The commands that look at training data: `lladav data check` and `lladav data preview`."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from .cli_console import (
    CodeOption,
    FolderOption,
    ModelOption,
    OutsideOption,
    QuestionOption,
    UrlsOption,
    err,
    loading,
    out,
)

SHOWN = 20
BAR = 40
LEARNED, SEEN, PLACEHOLDER = "bold green", "dim", "cyan"

data_app = typer.Typer(help="Look at training data before training.", no_args_is_help=True)

DataArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="LLaVA or chat JSON, JSON lines, CSV, TSV, or a folder.")
]


@data_app.command()
def check(
    file: DataArgument,
    image_folder: FolderOption = None,
    allow_outside: OutsideOption = False,
    allow_urls: UrlsOption = False,
    question: QuestionOption = None,
    model: ModelOption = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=1, metavar="N", help="Say what cutting at N tokens would lose.")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture whole, not only its header.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Bad records are no failure, as in training that skips them.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything that was found, as JSON.")
    ] = None,
    trust_remote_code: CodeOption = False,
) -> None:
    """Report every bad record of FILE with its line, count what there is, and measure how long samples are.

    The exit code is 0 if all is well, 1 if there are bad records, 2 if FILE cannot be read.
    """
    processor = _processor(model, trust_remote_code)
    from . import data_report
    from .files import write_text

    with _reading() as progress:
        report = data_report.check_data(
            file,
            processor,
            decode=decode,
            max_length=max_length,
            on_progress=progress,
            **_options(image_folder, allow_outside, allow_urls, question),
        )
    if json_file is not None:
        write_text(json_file, json.dumps({"file": str(file), **report.as_json()}, indent=1) + "\n")
    _print_bad(report, json_file)
    _print_counts(report, file)
    _print_lengths(report, model)
    if json_file is not None:
        out.print(Text(f"Written to {json_file}"), soft_wrap=True)
    if skip_bad and not report.good:
        raise ValueError(f"no record of {file} is left: all {report.records} are bad")
    if report.bad and not skip_bad:
        raise typer.Exit(1)


@data_app.command()
def preview(
    file: DataArgument,
    count: Annotated[int, typer.Option("-n", min=1, help="How many examples.")] = 3,
    recipe: Annotated[str, typer.Option(help="What `lladav train` would do with them; see its --help.")] = "lora",
    contact_sheet: Annotated[
        Path | None, typer.Option("--contact-sheet", metavar="PNG", help="Save the pictures of these examples.")
    ] = None,
    image_folder: FolderOption = None,
    allow_outside: OutsideOption = False,
    allow_urls: UrlsOption = False,
    question: QuestionOption = None,
    model: ModelOption = None,
    trust_remote_code: CodeOption = False,
) -> None:
    """Print what the model sees of the first examples of FILE, with what is learned in green."""
    from .recipes import find_recipe

    chosen = find_recipe(recipe)
    processor = _processor(model, trust_remote_code)
    from .data import read_examples
    from .data_preview import contact_sheet as lay_out
    from .files import save_picture
    from .prompt_view import PromptViewer

    options = _options(image_folder, allow_outside, allow_urls, question)
    limit = processor.image_processor.max_image_pixels
    examples = list(islice(read_examples(file, max_image_pixels=limit, on_bad=_print_error, **options), count))
    if not examples:
        raise ValueError(f"{file} has no good record to show; see `lladav data check {file}`")
    viewer = PromptViewer(processor, chosen.image_separator, chosen.prompt, chosen.answers_only)
    for example in examples:
        _print_prompt(example, viewer)
    out.rule()
    out.print(_legend())
    if contact_sheet is not None:
        save_picture(lay_out(examples, max_image_pixels=limit), contact_sheet)
        out.print(Text(f"Saved {contact_sheet}"), soft_wrap=True)


def _processor(model: str | None, trust_remote_code: bool) -> Any:
    with loading(show=False):
        from transformers import AutoProcessor

        from . import BUNDLED_CHECKPOINT

        return AutoProcessor.from_pretrained(model or BUNDLED_CHECKPOINT, trust_remote_code=trust_remote_code)


def _options(image_folder: Path | None, allow_outside: bool, allow_urls: bool, question: str | None) -> dict[str, Any]:
    given = {"image_folder": image_folder, "question": question}
    options = {name: value for name, value in given.items() if value is not None}
    return {**options, "allow_outside": allow_outside, "allow_urls": allow_urls}


@contextmanager
def _reading() -> Iterator[Callable[[int, int], None]]:
    """A bar while records are read."""
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("Reading", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_error(error: Any) -> None:
    _print_finding("bad", "red", str(error))


def _print_finding(level: str, style: str, text: str) -> None:
    from .record_files import printable

    err.print(Text.assemble((f"{level}  ", style), printable(text)), soft_wrap=True)


def _print_bad(report: Any, json_file: Path | None) -> None:
    for error in report.bad[:SHOWN]:
        _print_error(error)
    where = f"all are in {json_file}" if json_file else "--json FILE writes all"
    if (rest := len(report.bad) - SHOWN) > 0:
        err.print(Text(f"... and {rest:,} more bad records; {where}"))
    for identity, source in report.repeated_ids[:SHOWN]:
        _print_finding("warning", "yellow", f"{source}: the id {identity!r} stood before")
    if (rest := len(report.repeated_ids) - SHOWN) > 0:
        err.print(Text(f"... and {rest:,} more repeated ids; {where}"))


def _print_counts(report: Any, file: Path) -> None:
    line = f"{file}: {report.records:,} records, {report.good:,} good, {len(report.bad):,} bad"
    out.print(Text(line), soft_wrap=True)
    if not report.good:
        return
    table = Table("what", "records", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for kind in ("text", "one picture", "several pictures", "video"):
        if report.kinds[kind]:
            table.add_row(kind, f"{report.kinds[kind]:,}")
    for turns, records in sorted(report.turns.items()):
        table.add_row(f"{turns} answer{'s' * (turns != 1)}", f"{records:,}")
    out.print(table)


def _print_lengths(report: Any, model: str | None) -> None:
    from .record_files import printable

    if not report.good:
        return
    bins = report.histogram()
    most = max(item.samples for item in bins)
    table = Table("tokens", "records", "", box=None, pad_edge=False)
    table.columns[0].justify = table.columns[1].justify = "right"
    for item in bins:
        bar = "█" * round(BAR * item.samples / most) or ("▏" if item.samples else "")
        table.add_row(f"{item.first:,} .. {item.last:,}", f"{item.samples:,}", bar)
    out.print(table)
    longest, source = report.longest
    line = f"{sum(report.lengths):,} tokens with pictures expanded; the longest record is {source} with {longest:,}"
    out.print(Text(printable(line)), soft_wrap=True)  # what a file is called is no markup
    if model is None:
        out.print("Counted with the bundled checkpoint; --model FOLDER counts for another.", style="dim")
    if (cut := report.truncation) is not None:
        out.print(
            f"Cut at {cut.max_length:,}: {cut.samples:,} records lose {cut.tokens:,} tokens; "
            f"{len(cut.through_picture):,} of them lose a part of a picture and cannot be used; "
            f"{len(cut.answerless):,} keep nothing of their answers."
        )


def _print_prompt(example: Any, viewer: Any) -> None:
    from .data_preview import prompt_spans
    from .media import check_media
    from .record_files import RecordError, printable

    limit = viewer.processor.image_processor.max_image_pixels
    try:
        view = viewer.view(example.messages, check_media(example.messages, limit))
    except ValueError as error:  # such as a chat of many turns, where the recipe takes pictures with captions
        _print_error(RecordError.of(error, example.source))
        return
    name = "" if example.id == example.source else f"id {example.id}, "
    out.rule(Text(printable(f"{example.source}: {name}{view.length} tokens")), align="left")
    text = Text()
    for span in prompt_spans(view, viewer.processor):
        style = PLACEHOLDER if span.placeholder else LEARNED if span.learned else SEEN
        text.append(_marked(span.text) if span.learned else span.text, style)
    out.print(text, soft_wrap=True)


def _marked(text: str) -> str:
    """Where there is no colour, marks show what is learned."""
    return text if out.is_terminal and not out.no_color else f"«{text}»"


def _legend() -> Text:
    return Text.assemble((_marked("learned"), LEARNED), "  ", ("seen", SEEN), "  ", ("picture or video", PLACEHOLDER))
