"""What a checkpoint folder says about itself, for its model card: nothing here is guessed."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .strict_json import loads
from .weights import StoredTensor, scan_folder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
RECIPE = "recipe.json"
# Written by transformers' Trainer and by `lladav eval --output`.
METRIC_FILES = ("metrics.json", "all_results.json", "eval_results.json", "train_results.json", "evaluation.json")
ADAPTER_SETTINGS = (
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora", "target_modules",
    "exclude_modules", "layers_to_transform", "modules_to_save", "rank_pattern", "alpha_pattern", "peft_version",
)  # fmt: skip


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, counted.

    Attributes:
        parameters: their entries.
        nbytes: their size.
        dtypes: entries by element type.
    """

    parameters: int
    nbytes: int
    dtypes: dict[torch.dtype, int]

    @property
    def parameters_text(self) -> str:
        """Such as "8.4 billion"."""
        for size, word in ((10**9, "billion"), (10**6, "million")):
            if self.parameters >= size:
                return f"{self.parameters / size:.2f} {word}"
        return f"{self.parameters:,}"

    @property
    def dtype_text(self) -> str:
        """Such as "bfloat16", most frequent first."""
        ordered = sorted(self.dtypes, key=lambda dtype: (-self.dtypes[dtype], str(dtype)))
        return " and ".join(str(dtype).removeprefix("torch.") for dtype in ordered)

    @property
    def size_text(self) -> str:
        """Such as "16.87 GB"."""
        return size_text(self.nbytes)

    @property
    def half_text(self) -> str:
        """The size in 16 bits, or nothing if they are smaller already."""
        half = 2 * self.parameters
        return size_text(half) if self.nbytes > half else ""


def size_text(nbytes: int) -> str:
    """Bytes for people, in powers of ten as disks and the Hub count.

    Args:
        nbytes: such as 1500.

    Returns:
        Such as "1.5 kB".
    """
    for unit, size, digits in (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 10**3, 1)):
        if nbytes >= size:
            return f"{nbytes / size:.{digits}f} {unit}"
    return f"{nbytes} B"


def count_weights(tensors: list[StoredTensor]) -> Weights:
    """Count tensors by their headers.

    Args:
        tensors: of all files.

    Returns:
        The counts.
    """
    dtypes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        dtypes[tensor.dtype] += torch.Size(tensor.shape).numel()
    return Weights(dtypes.total(), sum(tensor.nbytes for tensor in tensors), dict(dtypes))


def read_weights(folder: Path) -> Weights:
    """Count the tensors of a folder.

    Args:
        folder: with safetensors files.

    Returns:
        The counts; of an adapter folder, those of the adapter alone.

    Raises:
        ValueError: with every problem, if they cannot be read.
    """
    problems: list[str] = []
    tensors = scan_folder(folder, problems)
    if (folder / ADAPTER_CONFIG).is_file():
        tensors, problems = [tensor for tensor in tensors if tensor.file.name == ADAPTER_WEIGHTS], []
    if problems or not tensors:
        listing = "\n".join(f"- {problem}" for problem in problems or ["there are no tensors in safetensors files"])
        raise ValueError(f"the weights in {folder} cannot be described:\n{listing}")
    return count_weights(tensors)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object that must be there.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        ValueError: if it is missing, unreadable or no object.
    """
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level with dotted names; lists of records and empty values are left out.

    Args:
        settings: JSON.
        prefix: of the names.

    Returns:
        Value by name.
    """
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
            continue
        elif value is not None and value not in ("", []):
            flat[f"{prefix}{name}"] = value
    return flat


def cell(value: object) -> str:
    """A value as inline code in a Markdown table.

    Args:
        value: whatever a file holds; it cannot leave its cell.

    Returns:
        The cell's text.
    """
    if isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, list):
        text = ", ".join(str(item) for item in value)
    else:
        text = json.dumps(value) if isinstance(value, bool) else str(value)
    text = " ".join(text.split()).replace("|", r"\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))  # longer than any in the text
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def settings_table(settings: dict[str, Any]) -> str:
    """Settings or results as a Markdown table.

    Args:
        settings: value by name.

    Returns:
        The table, or nothing for no settings.
    """
    if not settings:
        return ""
    rows = [f"| {cell(name)} | {cell(value)} |" for name, value in settings.items()]
    return "\n".join(["| name | value |", "|---|---|", *rows])


def adapter_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Of a PEFT configuration, what says how the adapter was made.

    Args:
        config: `adapter_config.json`.

    Returns:
        Settings that are on, by name.
    """
    chosen = {name: config.get(name) for name in ADAPTER_SETTINGS}
    return flatten({name: value for name, value in chosen.items() if value not in (None, False, {}, [], "none")})


def read_recipe(folder: Path) -> dict[str, Any]:
    """The training settings beside the weights.

    Args:
        folder: a checkpoint or an adapter.

    Returns:
        Settings by dotted name; empty if there are none.
    """
    path = folder / RECIPE
    return flatten(read_object(path)) if path.is_file() else {}
