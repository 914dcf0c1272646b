"""Turn an official LLaDA-V checkpoint into a folder that transformers loads.

    python conversion/convert_checkpoint.py --source LLaDA-V --output LLaDA-V-HF

Tensors are renamed, not changed, and copied one output shard at a time. Everything is checked before anything is
written, and the output folder appears only when it is complete.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from transformers_lladav import (
    LladaVConfig,
    LladaVForMaskedDiffusion,
    LladaVGenerationConfig,
    LladaVImageProcessor,
    LladaVProcessor,
)
from transformers_lladav.checkpoint_keys_lladav import native_key
from transformers_lladav.files import new_folder
from transformers_lladav.official_config_lladav import config_problems, translate_config
from transformers_lladav.publishing import write_code_files, write_config, write_processor

MAX_SHARD_BYTES = 5 * 10**9
ANSWER_LENGTH = 128
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# In the order of `LladaVConfig.suppressed_token_ids`.
SUPPRESSED_TOKENS = ("<|endoftext|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>")
# What a training run leaves beside its weights; neither opened nor copied.
TRAINING_STATE = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state")
# Buffers that older releases stored and that are computed here.
COMPUTED_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")


class CheckpointError(ValueError):
    """A checkpoint that cannot be converted; the message lists every reason."""

    def __init__(self, source: Path, problems: list[str]) -> None:
        listing = "\n".join(f"- {problem}" for problem in problems)
        super().__init__(f"{source} cannot be converted; nothing was written:\n{listing}")


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is.

    Attributes:
        file: the safetensors file.
        key: its name there.
        shape: its shape.
        dtype: its element type.
    """

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """Everything that is known before the first byte is written.

    Attributes:
        config: the native configuration.
        processor: the processor with its placeholders.
        tensors: every tensor by its native name, file by file.
    """

    config: Any
    processor: Any
    tensors: dict[str, StoredTensor]


def convert(
    source: str | Path,
    output: str | Path,
    vision_config: str | Path | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Convert an official LLaDA-V folder.

    Args:
        source: folder with the official `config.json`, safetensors files and tokenizer.
        output: folder to make; it must not exist or be empty.
        vision_config: SigLIP `config.json` of the vision tower; its sizes are read from the tensors if not given.
        dtype: type of the converted tensors; by default each keeps its own.
        max_shard_bytes: size of the largest weight file, and with it the memory that is needed.

    Returns:
        The output folder.

    Raises:
        FileExistsError: if the output folder has content.
        CheckpointError: if the source is not a complete official checkpoint; lists every problem found.
    """
    source, output = Path(source), Path(output)
    plan = make_plan(source, None if vision_config is None else Path(vision_config))
    with new_folder(output) as folder:
        write_weights(plan.tensors, folder, dtype, max_shard_bytes)
        plan.config.dtype = dtype or _main_dtype(plan.tensors)
        write_config(plan.config, folder)
        _generation_config(plan.config).save_pretrained(folder)
        write_processor(plan.processor, folder)
        write_code_files(folder)
    return output


def make_plan(source: Path, vision_config: Path | None) -> Plan:
    """Read everything but the tensors' values, and check it.

    Args:
        source: the official folder.
        vision_config: SigLIP `config.json`, or None.

    Returns:
        The plan.

    Raises:
        CheckpointError: listing every problem.
    """
    problems: list[str] = []
    official = _read_json(source / "config.json", problems)
    vision = None if vision_config is None else _read_json(vision_config, problems)
    if official:
        problems += config_problems(official)
    problems += pickle_problems(source)
    tensors = scan_tensors(source, problems)
    tokenizer = _read_tokenizer(source, problems)
    if problems or official is None or tokenizer is None:
        raise CheckpointError(source, problems)
    try:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        config = LladaVConfig(**translate_config(official, shapes, vision))
        processor = build_processor(config, tokenizer)
        expected = expected_shapes(config)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(source, str(error).splitlines()) from error
    if problems := tensor_problems(tensors, expected):
        raise CheckpointError(source, problems)
    return Plan(config, processor, tensors)


def _read_json(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds a {type(content).__name__}, not an object")
        return None
    return content


def _read_tokenizer(source: Path, problems: list[str]) -> Any:
    if not (source / "tokenizer.json").is_file():
        problems.append("tokenizer.json is missing; copy the tokenizer files of the release into the folder")
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(source)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        problems.append(f"the tokenizer cannot be read: {error}")
        return None


def pickle_problems(source: Path) -> list[str]:
    """Weights in a format that runs code when it is opened.

    Args:
        source: the official folder.

    Returns:
        One sentence per file.
    """
    return [
        f"{path.name} is a pickle, which can run any code when it is opened; it is refused. Save its tensors as "
        "safetensors on a machine you can afford to lose, or remove it if the folder has safetensors as well"
        for path in sorted(source.glob("*"))
        if path.suffix in PICKLES and not path.name.startswith(TRAINING_STATE)
    ]


def scan_tensors(source: Path, problems: list[str]) -> dict[str, StoredTensor]:
    """Read the headers of all safetensors files.

    Args:
        source: the official folder.
        problems: gets a sentence for every unreadable file, misplaced or doubled tensor.

    Returns:
        Every tensor by its native name.
    """
    files = sorted(source.glob("*.safetensors"))
    if not files:
        problems.append("there are no *.safetensors files")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _scan_file(file, problems):
            name = native_key(tensor.key)
            if name in tensors:
                problems.append(f"{tensor.key} is in {tensors[name].file.name} and again in {file.name}")
            tensors[name] = tensor
    index = source / "model.safetensors.index.json"
    if index.is_file():
        weight_map = (_read_json(index, problems) or {}).get("weight_map", {})
        stored = {file.name for file in files}
        problems += [f"{name} is missing" for name in sorted(set(weight_map.values()) - stored)]
    return tensors


def _scan_file(file: Path, problems: list[str]) -> list[StoredTensor]:
    found = []
    try:
        with safe_open(file, framework="pt") as handle:
            for key in handle.keys():  # noqa: SIM118
                entry = handle.get_slice(key)
                if key.endswith(COMPUTED_BUFFERS):
                    continue
                if entry.get_dtype() not in DTYPES:
                    problems.append(f"{key} in {file.name} is {entry.get_dtype()}; supported: {', '.join(DTYPES)}")
                    continue
                found.append(StoredTensor(file, key, tuple(entry.get_shape()), DTYPES[entry.get_dtype()]))
    except (SafetensorError, OSError) as error:
        problems.append(f"{file.name} is truncated or damaged ({error}); download it again")
    return found


def expected_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's tensors, without making them.

    Args:
        config: a [`LladaVConfig`].

    Returns:
        Shape by native name.
    """
    with torch.device("meta"):
        model = LladaVForMaskedDiffusion(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def tensor_problems(tensors: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]]) -> list[str]:
    """Compare what is there with what the model needs.

    Args:
        tensors: what the source holds.
        expected: shape by native name.

    Returns:
        One sentence per missing, unexpected or wrongly shaped tensor.
    """
    problems = [f"missing tensor: {name} {list(expected[name])}" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        where = f"{tensor.key} in {tensor.file.name}"
        if name not in expected:
            problems.append(f"unexpected tensor: {where}, shape {list(tensor.shape)}")
        elif tensor.shape != expected[name]:
            problems.append(f"wrong shape: {where} is {list(tensor.shape)}, config.json needs {list(expected[name])}")
    return problems


def build_processor(config: Any, tokenizer: Any) -> LladaVProcessor:
    """The processor of the checkpoint; the ids it settles are written into the configuration.

    Args:
        config: a [`LladaVConfig`]; its placeholder ids and number of producible tokens are set.
        tokenizer: the official tokenizer; the placeholders are added to it.

    Returns:
        The processor.

    Raises:
        ValueError: if a special token has another id than the configuration says, or the embedding has no room for
            the placeholders.
    """
    expected = dict(zip(SUPPRESSED_TOKENS, config.suppressed_token_ids, strict=True))
    expected |= {"<|eot_id|>": config.text_config.eos_token_id, "<|mdm_mask|>": config.mask_token_id}
    vocabulary = tokenizer.get_vocab()
    wrong = [
        f"the tokenizer has {name} as {vocabulary.get(name)}, not as {number}"
        for name, number in expected.items()
        if vocabulary.get(name) != number
    ]
    if wrong:
        raise ValueError("\n".join(wrong))
    config.output_vocab_size = len(tokenizer)
    processor = LladaVProcessor(
        LladaVImageProcessor(
            size={"height": config.vision_config.image_size, "width": config.vision_config.image_size},
            patch_size=config.vision_config.patch_size,
            image_grid_pinpoints=config.image_grid_pinpoints,
            max_tiles=config.max_tiles,
            newline_position=config.newline_position,
        ),
        tokenizer,
    )
    config.image_token_id, config.video_token_id = processor.image_token_id, processor.video_token_id
    config.validate()
    return processor


def _generation_config(config: Any) -> LladaVGenerationConfig:
    return LladaVGenerationConfig(
        max_new_tokens=ANSWER_LENGTH,
        block_length=ANSWER_LENGTH,
        max_denoising_steps=ANSWER_LENGTH,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        bos_token_id=config.text_config.bos_token_id,
        mask_token_id=config.mask_token_id,
    )


def _main_dtype(tensors: dict[str, StoredTensor]) -> torch.dtype:
    return Counter(tensor.dtype for tensor in tensors.values()).most_common(1)[0][0]


def write_weights(
    tensors: dict[str, StoredTensor], folder: Path, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    """Copy the tensors under their native names, holding one output shard in memory at a time.

    Args:
        tensors: what to copy, by native name.
        folder: an existing folder.
        dtype: type to convert to, or None.
        max_shard_bytes: size of the largest file; a larger tensor gets a file of its own.
    """
    shards = list(_plan_shards(tensors, dtype, max_shard_bytes))
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(_read_tensors(tensors, names, dtype), folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # safetensors makes files for the owner only
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(_size(tensor, dtype) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        text = json.dumps(index, indent=2) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _size(tensor: StoredTensor, dtype: torch.dtype | None) -> int:
    return torch.Size(tensor.shape).numel() * (dtype or tensor.dtype).itemsize


def _plan_shards(
    tensors: dict[str, StoredTensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, tensor in tensors.items():
        if names and size + _size(tensor, dtype) > max_shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += _size(tensor, dtype)
    yield names


def _read_tensors(
    tensors: dict[str, StoredTensor], names: list[str], dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    with ExitStack() as stack:
        files = sorted({tensors[name].file for name in names})
        handles = {file: stack.enter_context(safe_open(file, framework="pt")) for file in files}
        return {
            name: handles[tensors[name].file].get_tensor(tensors[name].key).to(dtype or tensors[name].dtype)
            for name in names
        }


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        0, or 1 with the reason on standard error.
    """
    parser = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Convert an official LLaDA-V checkpoint into a folder that transformers loads, with or without "
        "the transformers_lladav package. Everything is checked first; the output appears only when complete.",
    )
    parser.add_argument("--source", required=True, type=Path, help="folder of the official release (llava_llada)")
    parser.add_argument("--output", required=True, type=Path, help="folder to make; must not exist or be empty")
    parser.add_argument(
        "--vision-config",
        type=Path,
        metavar="FILE",
        help="config.json of the SigLIP vision tower; by default its sizes are read from the tensors, which works "
        "for SigLIP2-so400m (the number of attention heads cannot be seen in others)",
    )
    parser.add_argument(
        "--dtype",
        choices=("keep", "bfloat16", "float16", "float32"),
        default="keep",
        help="type of the converted tensors (default: keep each as it is)",
    )
    arguments = parser.parse_args(argv)
    dtype = None if arguments.dtype == "keep" else getattr(torch, arguments.dtype)
    try:
        folder = convert(arguments.source, arguments.output, arguments.vision_config, dtype)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
