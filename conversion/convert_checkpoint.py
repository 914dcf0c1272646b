"""Turn an official LLaDA-V checkpoint into a folder that transformers loads.

    python conversion/convert_checkpoint.py --source GSAI-ML/LLaDA-V --output LLaDA-V-hf

Tensors are renamed, not changed, and copied one output file at a time. Everything but the values is checked before
anything is written, the values while they are copied, and the output folder appears only when it is complete.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from checkpoint_folders import describe_files, list_tensors, main_dtype, read_tokenizer, write_folder
from command_line import add_output_options, add_source_options, chosen_dtype, chosen_shard_bytes, parse, run
from transformers_lladav import LladaVConfig, LladaVProcessor, pushing
from transformers_lladav.files import check_free
from transformers_lladav.official_config_lladav import config_problems, translate_config
from transformers_lladav.publishing import build_processor, model_shapes, write_all_but_weights
from transformers_lladav.sources import fetch, is_hub_id, origin
from transformers_lladav.weights import (
    MAX_SHARD_BYTES,
    CheckpointError,
    Tensors,
    by_native_name,
    bytes_after,
    read_json,
    tensor_problems,
)

CONSEQUENCE = "cannot be converted; nothing was written"


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first byte is written.

    Attributes:
        source: where it comes from.
        config: the native configuration.
        processor: the processor with its placeholders.
        tensors: every tensor by its native name, file by file.
        origin: the Hub repository that the tensors come from, if it is known.
    """

    source: str
    config: Any
    processor: LladaVProcessor
    tensors: Tensors
    origin: str | None = None


def make_plan(
    source: str | Path, vision_config: Path | None = None, revision: str | None = None, weights: bool = True
) -> Plan:
    """Read everything but the tensors' values, and check it.

    Args:
        source: an official folder or Hub id.
        vision_config: SigLIP `config.json`, or the folder that holds it; None to read the sizes from the tensors.
        revision: branch, tag or commit of a Hub id.
        weights: whether the weights of a Hub id are downloaded; otherwise only their headers are.

    Returns:
        The plan.

    Raises:
        CheckpointError: listing every problem.
    """
    source = str(source)
    folder = fetch(source, revision, weights)
    problems: list[str] = []
    official = read_json(folder / "config.json", problems)
    vision = None if vision_config is None else read_json(_config_file(vision_config), problems)
    tokenizer = read_tokenizer(folder, problems)
    known = not problems
    tensors = by_native_name(list_tensors(source, folder, revision, weights, problems), problems)
    if official and (wrong := config_problems(official)):
        problems, known = [*wrong, *problems], False
    if not known:
        raise _refusal(source, problems)
    try:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config = LladaVConfig(**translate_config(official, shapes, vision))
        processor = build_processor(config, tokenizer)
        problems += tensor_problems(tensors, model_shapes(config), complete=not problems)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise _refusal(source, [*problems, *str(error).splitlines()]) from error
    if problems:
        raise _refusal(source, problems)
    return Plan(source, config, processor, tensors, origin(source, folder))


def _refusal(source: str, problems: list[str]) -> CheckpointError:
    return CheckpointError(source, problems, CONSEQUENCE)


def _config_file(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path


def convert(
    source: str | Path,
    output: str | Path,
    vision_config: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    revision: str | None = None,
    show_progress: bool = False,
    downloaded_from: str | None = None,
) -> Path:
    """Convert an official LLaDA-V checkpoint.

    Args:
        source: folder with the official `config.json`, safetensors files and tokenizer, or a Hub id.
        output: folder to make; it must not exist or be empty.
        vision_config: SigLIP `config.json` of the vision tower; its sizes are read from the tensors if not given.
        dtype: type of the converted tensors; by default each keeps its own.
        max_shard_bytes: size of the largest weight file, and with it the memory that is needed.
        revision: branch, tag or commit of a Hub id.
        show_progress: whether a bar is drawn on standard error.
        downloaded_from: the Hub id of a local folder; recorded in the weight files, for the model card.

    Returns:
        The output folder.

    Raises:
        FileExistsError: if the output folder has content.
        CheckpointError: if the source is not a complete official checkpoint; lists every problem found.
        OSError: if the source cannot be found or the disk is too small.
    """
    output = Path(output)
    check_free(output)
    plan = make_plan(source, None if vision_config is None else Path(vision_config), revision)
    if downloaded_from is not None:
        plan = replace(plan, origin=downloaded_from)
    return write_plan(plan, output, CONSEQUENCE, dtype, max_shard_bytes, "converting" if show_progress else None)


def write_plan(
    plan: Plan,
    output: Path,
    consequence: str,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress_title: str | None = None,
) -> Path:
    """Write a native folder.

    Args:
        plan: what it holds; the type of its tensors is written into its configuration.
        output: as for `write_folder`.
        consequence: as for `write_folder`.
        dtype: as for `write_folder`.
        max_shard_bytes: as for `write_folder`.
        progress_title: as for `write_folder`.

    Returns:
        The output folder.
    """
    plan.config.dtype = dtype or main_dtype(plan.tensors)

    def write_rest(folder: Path) -> None:
        write_all_but_weights(plan.config, plan.processor, folder)

    return write_folder(
        output,
        plan.source,
        plan.tensors,
        write_rest,
        consequence,
        dtype,
        max_shard_bytes,
        progress_title,
        plan.origin,
    )


def describe(plan: Plan, dtype: torch.dtype | None, max_shard_bytes: int) -> Iterator[str]:
    """What would be written, every key.

    Args:
        plan: the plan.
        dtype: type of the converted tensors, or None.
        max_shard_bytes: size of the largest weight file.

    Yields:
        Lines.
    """
    text, vision = plan.config.text_config, plan.config.vision_config
    yield f"source: {plan.source}, {len(plan.tensors)} tensors, {bytes_after(plan.tensors, None) / 1e9:.2f} GB"
    yield (
        f"language model: {text.num_hidden_layers} layers, hidden {text.hidden_size}, "
        f"{text.num_attention_heads} heads ({text.num_key_value_heads} key-value), vocabulary {text.vocab_size}"
    )
    yield (
        f"vision tower: {vision.num_hidden_layers} layers, hidden {vision.hidden_size}, "
        f"{vision.num_attention_heads} heads, tiles of {vision.image_size} pixels, patches of {vision.patch_size}"
    )
    yield (
        f"placeholders: <image> {plan.config.image_token_id}, <video> {plan.config.video_token_id}; "
        f"mask {plan.config.mask_token_id}; answers consist of ids below {plan.config.output_vocab_size}"
    )
    yield from describe_files(plan.tensors, dtype, max_shard_bytes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Convert an official LLaDA-V checkpoint into a folder that transformers loads, with or without "
        "the transformers_lladav package. Everything is checked first; the output appears only when complete.",
    )
    add_source_options(parser, "the official release (llava_llada)")
    parser.add_argument(
        "--vision-config",
        type=Path,
        metavar="FILE",
        help="config.json of the SigLIP vision tower, or its folder; by default its sizes are read from the tensors, "
        "which works for SigLIP2-so400m (the number of attention heads cannot be seen in others)",
    )
    parser.add_argument(
        "--origin",
        metavar="ID",
        help="Hub id that a local folder was downloaded from, such as GSAI-ML/LLaDA-V; recorded in the weight files, "
        "so that the model card can name it (known by itself for a Hub id and for a folder of the Hub's cache)",
    )
    add_output_options(parser)
    parser.add_argument("--push-to", metavar="REPO", help="publish the result as OWNER/NAME, as `lladav push` does")
    parser.add_argument("--private", action="store_true", help="with --push-to: make a new repository private")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        0.
    """
    parser = _parser()
    arguments = parse(parser, argv)
    if arguments.private and arguments.push_to is None:
        parser.error("--private needs --push-to REPO")
    if arguments.origin is not None and not is_hub_id(arguments.origin):
        parser.error(f"--origin {arguments.origin} is no Hub id such as GSAI-ML/LLaDA-V")
    dtype, shard_bytes = chosen_dtype(arguments), chosen_shard_bytes(arguments)
    if arguments.push_to is not None:
        pushing.check_repo_id(arguments.push_to)
    if arguments.dry_run:
        plan = make_plan(arguments.source, arguments.vision_config, arguments.revision, weights=False)
        print("\n".join(describe(plan, dtype, shard_bytes)))
        return 0
    if arguments.push_to is not None:
        pushing.check_login()  # before the work, not after it
    folder = convert(
        arguments.source,
        arguments.output,
        arguments.vision_config,
        dtype,
        shard_bytes,
        arguments.revision,
        show_progress=True,
        downloaded_from=arguments.origin,
    )
    print(f"wrote {folder}")
    if arguments.push_to is not None:
        print(f"published: {_publish(folder, arguments.push_to, arguments.private)}")
    return 0


def _publish(folder: Path, repo_id: str, private: bool) -> str:
    try:
        return pushing.push(pushing.plan_upload(folder, repo_id), private).address
    except (ValueError, OSError) as error:
        again = f"lladav push {folder} {repo_id}{' --private' if private else ''}"
        raise OSError(f"{error}\n{folder} is complete all the same; publish it with: {again}") from error


if __name__ == "__main__":
    sys.exit(run(main))
