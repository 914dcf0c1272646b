"""The command that answers many records: `lladav batch`."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from .cli_asking import (
    AdapterOption,
    BlockOption,
    LengthOption,
    PresetOption,
    StepsOption,
    ThresholdOption,
)
from .cli_console import (
    CodeOption,
    DeviceOption,
    FolderOption,
    ModelOption,
    OutsideOption,
    QuantizationOption,
    QuestionOption,
    UrlsOption,
    bars,
    loading,
    out,
)
from .cli_evaluation import BatchOption, SetOption, generation_settings

ColumnOption = Annotated[str, typer.Option("--column", metavar="NAME", help="What the answer is called.")]
SkipOption = Annotated[bool, typer.Option("--skip-bad", help="Write an 'error' where a record cannot be used.")]


def batch(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Records: JSON lines, JSON, CSV, TSV or a folder.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="JSON lines; must not be there yet.")],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    batch_size: BatchOption = 32,
    column: ColumnOption = "prediction",
    skip_bad: SkipOption = False,
    preset: PresetOption = None,
    max_new_tokens: LengthOption = None,
    block_length: BlockOption = None,
    steps: StepsOption = None,
    threshold: ThresholdOption = None,
    change: SetOption = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    image_folder: FolderOption = None,
    allow_outside: OutsideOption = False,
    allow_urls: UrlsOption = False,
    question: QuestionOption = None,
    device: DeviceOption = "auto",
    quantization: QuantizationOption = None,
    trust_remote_code: CodeOption = False,
) -> None:
    """Answer every record of INPUT, and write it with its answer to OUTPUT, in the same order.

    An answer that a record has is not looked at. An interrupted run goes on when the command is repeated; OUTPUT is
    there when all is done. For several GPUs: accelerate launch --num_processes 2 -m transformers_lladav batch ...
    """
    given = {"max_new_tokens": max_new_tokens, "block_length": block_length, "max_denoising_steps": steps}
    generation = generation_settings({**given, "threshold": threshold}, change)
    with loading(show=False), bars() as begin_bar:
        from .batch_run import BatchSettings, run_batch
        from .eval_asking import Asking
        from .eval_tasks import ReadOptions

        outcome = run_batch(
            BatchSettings(
                source, output, model, adapter, Asking(generation, preset, seed, batch_size=batch_size),
                ReadOptions(image_folder, allow_outside, allow_urls, question), column, skip_bad, device,
                trust_remote_code, quantization,
            ),
            begin_bar("Answering"),
        )  # fmt: skip
    if outcome is None:  # not the first process
        return
    earlier = f", {outcome.earlier:,} of them by an earlier run" if outcome.earlier else ""
    bad = f"; {outcome.bad:,} could not be used" if outcome.bad else ""
    out.print(Text(f"{outcome.records:,} records{earlier}{bad}. Written to {output}"), soft_wrap=True)
    if outcome.bad == outcome.records:
        sys.exit(1)
