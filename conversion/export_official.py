"""Turn a native LLaDA-V folder into one in the layout of the official release, for the official code.

    python conversion/export_official.py --source LLaDA-V-tuned --output LLaDA-V-tuned-official

Tensors are renamed, not changed, and copied one output file at a time. What the official layout cannot express is
refused. Everything but the values is checked before anything is written, and the output folder appears only when it is
complete.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from checkpoint_folders import describe_files, list_tensors, main_dtype, write_folder
from command_line import add_output_options, add_source_options, chosen_dtype, chosen_shard_bytes, parse, run
from transformers_lladav import LladaVConfig
from transformers_lladav.card_facts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from transformers_lladav.chat_template_lladav import build_chat_template
from transformers_lladav.checkpoint_keys_lladav import official_key
from transformers_lladav.files import check_free
from transformers_lladav.official_config_lladav import OFFICIAL_MODEL_TYPE
from transformers_lladav.official_export import (
    VISION_TOWER,
    export_problems,
    image_problems,
    known_tower,
    official_config,
    official_generation_config,
    official_tokenizer,
    official_tokenizer_config,
)
from transformers_lladav.parts_config import translate_vision, vision_problems
from transformers_lladav.publishing import model_shapes
from transformers_lladav.sources import fetch
from transformers_lladav.weights import (
    MAX_SHARD_BYTES,
    CheckpointError,
    StoredTensor,
    by_native_name,
    bytes_after,
    read_json,
    tensor_problems,
)

CONSEQUENCE = "cannot be exported; nothing was written"
ADAPTER_PARTS = (".lora_", ".base_layer.", ".modules_to_save.", "base_model.model.")


@dataclass(frozen=True)
class ExportPlan:
    """Everything that is known before the first byte is written.

    Attributes:
        source: where it comes from.
        config: its configuration.
        vision_tower: what the official `config.json` will name.
        tensors: every tensor by its official name.
        tokenizer_files: content by file name.
        notes: what is lost, a sentence each.
    """

    source: str
    config: Any
    vision_tower: str
    tensors: Mapping[str, StoredTensor]
    tokenizer_files: Mapping[str, dict[str, Any]]
    notes: tuple[str, ...] = ()

    def files(self, dtype: torch.dtype | None) -> dict[str, dict[str, Any]]:
        """What stands beside the weights.

        Args:
            dtype: type of the written tensors, or None.

        Returns:
            Content by file name.
        """
        kind = str(dtype or main_dtype(self.tensors)).removeprefix("torch.")
        return {
            "config.json": official_config(self.config, kind, self.vision_tower),
            "generation_config.json": official_generation_config(self.config),
            **self.tokenizer_files,
        }


def make_plan(
    source: str | Path, vision_tower: str = VISION_TOWER, revision: str | None = None, weights: bool = True
) -> ExportPlan:
    """Read everything but the tensors' values, and check it.

    Args:
        source: a native folder or Hub id.
        vision_tower: Hub id or folder of the SigLIP model that the tower comes from. Its sizes are compared if it is
            that of the release or a folder.
        revision: branch, tag or commit of a Hub id.
        weights: whether the weights of a Hub id are downloaded; otherwise only their headers are.

    Returns:
        The plan.

    Raises:
        CheckpointError: listing every problem.
    """
    source = str(source)
    folder = fetch(source, revision, weights)
    if any((folder / name).exists() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        text = (
            "it is an adapter, which the official code cannot load; merge it into its base model first: "
            f"lladav merge {source} OUTPUT"
        )
        raise CheckpointError(source, [text], CONSEQUENCE)
    problems: list[str] = []
    config = _read_config(folder, problems)
    known = len(problems)
    tensors = by_native_name(list_tensors(source, folder, revision, weights, problems), problems)
    complete = len(problems) == known
    files: dict[str, dict[str, Any]] = {}
    if config is not None:
        problems += export_problems(config, _tower_sizes(vision_tower, problems))
        problems += image_problems(_image_settings(folder, problems), config)
        problems += _weight_problems(tensors, config, complete)
        files = _tokenizer_files(folder, config, problems)
    if problems or config is None:
        raise CheckpointError(source, problems, CONSEQUENCE)
    official = {official_key(name): tensor for name, tensor in tensors.items()}
    return ExportPlan(source, config, vision_tower, official, files, _template_note(folder))


def _template_note(folder: Path) -> tuple[str, ...]:
    path = folder / "chat_template.jinja"
    if (
        not path.is_file()
        or path.read_text(encoding="utf-8", errors="replace").strip() == build_chat_template().strip()
    ):
        return ()
    return ("the chat template is not the usual one and is not exported: the official code has its own prompts",)


def _read_config(folder: Path, problems: list[str]) -> Any:
    content = read_json(folder / "config.json", problems)
    if not content:
        return None
    kind = content.get("model_type")
    if kind == OFFICIAL_MODEL_TYPE:
        problems.append("it is in the official layout already")
        return None
    if kind != LladaVConfig.model_type:
        problems.append(
            f"config.json has model_type={kind!r}; a native LLaDA-V folder has {LladaVConfig.model_type!r}"
        )
        return None
    try:
        return LladaVConfig.from_dict(content)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        problems += str(error).splitlines()
        return None


def _tower_sizes(vision_tower: str, problems: list[str]) -> dict[str, Any] | None:
    """Sizes of the named tower without its last layer, as far as they can be known."""
    folder = Path(vision_tower)
    if not folder.is_dir():
        return known_tower(vision_tower)
    found: list[str] = []
    siglip, sizes = read_json(folder / "config.json", found), None
    found = found or vision_problems(siglip)
    try:
        sizes = None if found else translate_vision(siglip)["vision_config"]
    except (ValueError, TypeError, StrictDataclassError) as error:
        found = str(error).splitlines()
    problems += [f"--vision-tower {vision_tower}: {problem.strip()}" for problem in found]
    return sizes


def _image_settings(folder: Path, problems: list[str]) -> Mapping[str, Any]:
    path = folder / "processor_config.json"
    settings = read_json(path, problems).get("image_processor") if path.is_file() else None
    return settings if isinstance(settings, Mapping) else {}


def _weight_problems(tensors: Mapping[str, StoredTensor], config: Any, complete: bool) -> list[str]:
    if any(part in name for name in tensors for part in ADAPTER_PARTS):
        return [
            "the weights hold an adapter that was not merged; merge it before the model is saved: "
            "model.merge_and_unload(), then transformers_lladav.publishing.save_checkpoint"
        ]
    try:
        return tensor_problems(tensors, model_shapes(config), complete)
    except ValueError as error:
        return str(error).splitlines()


def _tokenizer_files(folder: Path, config: Any, problems: list[str]) -> dict[str, dict[str, Any]]:
    before = len(problems)
    native = read_json(folder / "tokenizer.json", problems)
    settings = read_json(folder / "tokenizer_config.json", problems)
    if len(problems) > before:
        return {}
    try:
        tokenizer = official_tokenizer(native, config, problems)
        tokenizer_config, special_tokens = official_tokenizer_config(settings, tokenizer)
    except (KeyError, TypeError, AttributeError) as error:
        problems.append(f"tokenizer.json is not one of the tokenizers library: {error!r}")
        return {}
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": special_tokens,
    }


def export(
    source: str | Path,
    output: str | Path,
    vision_tower: str = VISION_TOWER,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    revision: str | None = None,
    show_progress: bool = False,
) -> Path:
    """Export a native checkpoint to the official layout.

    Args:
        source: a native folder or Hub id.
        output: folder to make; it must not exist or be empty.
        vision_tower: as for `make_plan`.
        dtype: type of the written tensors; by default each keeps its own.
        max_shard_bytes: size of the largest weight file, and with it the memory that is needed.
        revision: branch, tag or commit of a Hub id.
        show_progress: whether a bar is drawn on standard error.

    Returns:
        The output folder.

    Raises:
        FileExistsError: if the output folder has content.
        CheckpointError: if the source is not complete or the official layout cannot express it; lists every problem.
        OSError: if the source cannot be found or the disk is too small.
    """
    output = Path(output)
    check_free(output)
    plan = make_plan(source, vision_tower, revision)
    for note in plan.notes:
        print(f"note: {note}", file=sys.stderr)

    def write_rest(folder: Path) -> None:
        for name, content in plan.files(dtype).items():
            (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    title = "exporting" if show_progress else None
    return write_folder(output, plan.source, plan.tensors, write_rest, CONSEQUENCE, dtype, max_shard_bytes, title)


def describe(plan: ExportPlan, dtype: torch.dtype | None, max_shard_bytes: int) -> Iterator[str]:
    """What an export would write, every key.

    Args:
        plan: the plan.
        dtype: type of the written tensors, or None.
        max_shard_bytes: size of the largest weight file.

    Yields:
        Lines.
    """
    yield f"source: {plan.source}, {len(plan.tensors)} tensors, {bytes_after(plan.tensors, None) / 1e9:.2f} GB"
    yield f"vision tower: {plan.vision_tower}"
    yield f"tokenizer: {plan.config.output_vocab_size} entries, without the placeholders"
    yield f"beside the weights: {', '.join(plan.files(dtype))}"
    yield from (f"note: {note}" for note in plan.notes)
    yield from describe_files(plan.tensors, dtype, max_shard_bytes)


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="export_official.py",
        description="Export a native LLaDA-V folder to the layout of the official release, so that the official code "
        "runs what was trained here. Everything is checked first; the output appears only when complete.",
    )
    add_source_options(parser, "a native model (lladav)")
    parser.add_argument(
        "--vision-tower",
        default=VISION_TOWER,
        metavar="NAME",
        help="SigLIP model that the official code takes the sizes of the vision tower from: a Hub id, or a folder "
        "(default: %(default)s)",
    )
    add_output_options(parser)
    arguments = parse(parser, argv)
    dtype, shard_bytes = chosen_dtype(arguments), chosen_shard_bytes(arguments)
    source, tower, revision = arguments.source, arguments.vision_tower, arguments.revision
    if arguments.dry_run:
        print("\n".join(describe(make_plan(source, tower, revision, weights=False), dtype, shard_bytes)))
        return 0
    print(f"wrote {export(source, arguments.output, tower, dtype, shard_bytes, revision, True)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
