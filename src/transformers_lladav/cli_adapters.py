"""The command that makes one model of an adapter and its base: `lladav merge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text

from .cli_console import CodeOption, err, loading, out


def merge(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="Folder or Hub id of a PEFT adapter.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Folder to make; must not exist or be empty.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Folder or Hub id of the base; by default what the adapter was trained on."
        ),
    ] = None,
    dtype: Annotated[
        Literal["keep", "bfloat16", "float16", "float32"],
        typer.Option(help="Type of the merged weights; 'keep' leaves them in that of the base."),
    ] = "keep",
    trust_remote_code: CodeOption = False,
) -> None:
    """Merge an ADAPTER into its base model, and write a complete checkpoint to OUTPUT."""
    with loading():
        import torch

        from . import adapters

        chosen = None if dtype == "keep" else getattr(torch, dtype)
        merged = adapters.merge(adapter, output, model, chosen, trust_remote_code)
    for note in merged.notes:
        err.print(Text.assemble(("Warning: ", "yellow"), note), soft_wrap=True)
    kind = str(merged.dtype).removeprefix("torch.")
    # As text, since what stands in square brackets in a path is no markup.
    out.print(Text(f"{merged.parameters:,} parameters in {kind}, from {merged.base}"), soft_wrap=True)
    written = f"Merged model written to {output}; try: lladav ask PICTURE QUESTION --model {output}"
    out.print(Text(written), soft_wrap=True)
