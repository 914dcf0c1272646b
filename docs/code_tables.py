"""Tables and lists of what the code itself says: settings, presets, recipes, token counts, commands."""

import ast
import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import typer
from draw_tiles import layout_of
from typer.cli import get_docs_for_click

from transformers_lladav import (
    PRESETS,
    LladaVConfig,
    LladaVForMaskedDiffusion,
    LladaVGenerationConfig,
    LladaVTextConfig,
)
from transformers_lladav.cli import app
from transformers_lladav.generation_configuration_lladav import ALIASES, DEFAULTS
from transformers_lladav.launching import configs, describe_config
from transformers_lladav.official_config_lladav import SIGLIP2_SO400M
from transformers_lladav.recipes import RECIPES
from transformers_lladav.tiling_lladav import video_token_count

TESTS = Path(__file__).resolve().parent.parent / "tests"
# Pictures as people have them: width and height.
SIZES = ((384, 384), (600, 400), (1024, 768), (1080, 1920), (1920, 1080), (4032, 3024), (2480, 3508), (3000, 300))
OPTION = re.compile(
    r"^(?P<indent> *)(?P<name>\w+)(?: \([^\n]*?\))?: (?P<words>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE
)


def described(docstring: str | None) -> dict[str, str]:
    """What a docstring says about each argument.

    Args:
        docstring: with a section "Args".

    Returns:
        Descriptions by name, each in one line.
    """
    section = (docstring or "").partition("Args:\n")[2]
    section = re.split(r"\n *(?:Returns|Raises|Yields):\n", section)[0]
    return {match["name"]: " ".join(match["words"].split()) for match in OPTION.finditer(section)}


def shown(value: Any) -> str:
    """A value as it is written in Python, as code in a table."""
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def setting_table(names: Sequence[str]) -> str:
    """What settings of the loop do, in the words of the class that checks them.

    Args:
        names: of the settings.

    Returns:
        A Markdown table.

    Raises:
        KeyError: for a name that is no setting.
    """
    texts = described(LladaVGenerationConfig.__doc__)
    official = {name: alias for alias, (name, _) in ALIASES.items()}
    rows = ["| setting | default | what it does |", "|---|---|---|"]
    for name in names:
        named = name in official and f"`{official[name]}`" not in texts[name]
        alias = f" Official name: `{official[name]}`." if named else ""
        rows.append(f"| `{name}` | {shown(DEFAULTS[name])} | {_cell(texts[name])}{alias} |")
    return "\n".join(rows)


def argument_table(names: Sequence[str]) -> str:
    """What arguments of `generate` do that are no settings.

    Args:
        names: of the arguments.

    Returns:
        A Markdown table.

    Raises:
        KeyError: for a name that is no argument.
    """
    texts = described(LladaVForMaskedDiffusion.generate.__doc__)
    rows = ["| argument | what it does |", "|---|---|"]
    return "\n".join([*rows, *(f"| `{name}` | {_cell(texts[name])} |" for name in names)])


def _cell(text: str) -> str:
    """A description as a cell: a sentence that begins with a capital, references as plain code."""
    text = re.sub(r"\[(`[^`]+`)\]", r"\1", text).replace("|", "\\|")
    return text[:1].upper() + text[1:].rstrip(".") + "."


def preset_table() -> str:
    """All presets with their settings."""
    rows = ["| preset | for | lengths | other settings | after the question |", "|---|---|---|---|---|"]
    for name, preset in PRESETS.items():
        lengths = [preset.settings.get(key) for key in ("max_new_tokens", "block_length", "max_denoising_steps")]
        given = " / ".join(map(str, lengths)) if lengths[0] else ""
        others = {
            key: value
            for key, value in preset.settings.items()
            if value != DEFAULTS[key] and key not in ("max_new_tokens", "block_length", "max_denoising_steps")
        }
        words = ", ".join(f"`{key}={value!r}`" for key, value in others.items())
        rows.append(
            f"| `{name}` | {preset.description} | {given} | {words} | {f'`{preset.tag}`' if preset.tag else ''} |"
        )
    return "\n".join(rows)


def recipe_table() -> str:
    """What each recipe trains, and how."""
    rows = [
        "| recipe | trains | rate | tower | samples a step | epochs | tokens | prompt |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, recipe in RECIPES.items():
        parts = (
            "everything" if len(recipe.trains) == 5 else ", ".join(part.replace("_", " ") for part in recipe.trains)
        )
        adapters = f"adapters of rank {recipe.lora.rank}, " if recipe.lora else ""
        held = f", base in {recipe.quantization}" if recipe.quantization else ""
        tower = f"{recipe.vision_learning_rate:g}" if recipe.vision_learning_rate else ""
        rows.append(
            f"| `{name}` | {adapters}{parts}{held} | {recipe.learning_rate:g} | {tower} | {recipe.global_batch_size} "
            f"| {recipe.epochs:g} | {recipe.max_length:,} | {recipe.prompt} |"
        )
    return "\n".join(rows)


def size_table() -> str:
    """How many tiles and tokens pictures of common sizes make with LLaDA-V's settings."""
    patches = LladaVConfig().patches_per_side
    rows = ["| picture | tiles | patches without padding | after shrinking | tokens |", "|---|---:|---:|---:|---:|"]
    for width, height in SIZES:
        layout = layout_of(width, height)
        (down, across), (rows_shown, columns_shown) = layout.tiles, layout.unpadded
        grid = "as they are" if layout.grid == layout.unpadded else f"{layout.grid[1]} x {layout.grid[0]}"
        rows.append(
            f"| {width} x {height} | {across} x {down} and the base tile | {columns_shown} x {rows_shown} | {grid} "
            f"| {patches * patches + layout.num_grid_tokens:,} |"
        )
    return "\n".join(rows)


def video_table() -> str:
    """How many tokens videos make, by where newlines stand."""
    patches = LladaVConfig().patches_per_side
    places = ("grid", "frame", "one_token", "no_token")
    rows = [f"| frames | {' | '.join(f'`{place}`' for place in places)} |", "|---:|---:|---:|---:|---:|"]
    for frames in (1, 8, 32):
        counts = (f"{video_token_count(frames, patches, place):,}" for place in places)
        rows.append(f"| {frames} | {' | '.join(counts)} |")
    return "\n".join(rows)


def field_table(fields: Iterable[tuple[str, Any]]) -> str:
    """Fields with their defaults, two in a row.

    Args:
        fields: names and values.

    Returns:
        A Markdown table.
    """
    cells = [f"`{name}` | {shown(value)}" for name, value in fields]
    half = -(-len(cells) // 2)
    rows = zip_longest(cells[:half], cells[half:], fillvalue=" | ")
    return "\n".join(
        ["| field | default | field | default |", "|---|---|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    )


def own_fields(configuration: type) -> str:
    """The fields that a configuration class has itself, with their defaults."""
    names = [field.name for field in dataclasses.fields(configuration) if field.name in vars(configuration)]
    return field_table((name, getattr(configuration, name)) for name in names)


def launch_table() -> str:
    """What the settings for `accelerate launch` are for, in the first two sentences of each."""
    rows = ["| settings | for |", "|---|---|"]
    for name, path in configs().items():
        sentences = re.split(r"(?<=\.) ", " ".join(describe_config(path).split()))
        rows.append(f"| `{name}` | {' '.join(sentences[:2])} |")
    return "\n".join(rows)


def commands() -> str:
    """Every command with its arguments and options, by Typer's own renderer.

    Returns:
        Markdown, a section for each command.
    """
    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="lladav"), name="lladav")
    text = re.sub(r"^# .*\n", "", text.replace("```console", "```text"))
    # Angles and brackets are Markdown outside of code.
    return re.sub(r"(?m)^(\* `[^`]*`: )(.*)$", lambda line: line[1] + _literal(line[2]), text)


def _literal(text: str) -> str:
    return re.sub(r"([\[\]<>_*])", r"\\\1", text) if "`" not in text else text


def proofs_table() -> str:
    """What each file of tests proves, in its own words.

    Returns:
        A Markdown table with the number of test functions.
    """
    rows = ["| file | tests | what it proves |", "|---|---:|---|"]
    for path in sorted(TESTS.glob("test_*.py")):
        parsed = ast.parse(path.read_text(encoding="utf-8"))
        names = [node.name for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef)]
        count = sum(name.startswith("test_") for name in names)
        proves = (ast.get_docstring(parsed) or "").split("\n")[0]
        rows.append(f"| `{path.stem}` | {count or 'shared'} | {_cell(proves)} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "presets": preset_table,
    "recipes": recipe_table,
    "sizes": size_table,
    "videos": video_table,
    "configs": launch_table,
    "config": lambda: own_fields(LladaVConfig),
    "text_config": lambda: own_fields(LladaVTextConfig),
    "tests": proofs_table,
    "vision_config": lambda: field_table(SIGLIP2_SO400M.items()),
}
