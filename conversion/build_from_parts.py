"""Put LLaDA and SigLIP together into a fresh LLaDA-V, ready to be trained.

    python conversion/build_from_parts.py --language GSAI-ML/LLaDA-8B-Instruct \\
        --vision google/siglip2-so400m-patch14-384 --output LLaDA-V-fresh --seed 0

Tensors are renamed, not changed, and copied one output file at a time; the last vision layer, the pooling head and the
text model of SigLIP are left out. The projector and the newline vector are new: see `draw_new_tensors`. Everything but
the values is checked before anything is written, and the output folder appears only when it is complete.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from checkpoint_folders import list_tensors, main_dtype, read_tokenizer
from command_line import add_output_options, chosen_dtype, chosen_shard_bytes, parse, run
from convert_checkpoint import Plan, describe, write_plan
from transformers_lladav import LladaVConfig
from transformers_lladav.checkpoint_keys_lladav import language_key, vision_key
from transformers_lladav.files import check_free
from transformers_lladav.parts_config import (
    MAX_POSITIONS,
    language_problems,
    translate_parts,
    vision_layers,
    vision_problems,
)
from transformers_lladav.publishing import build_processor, model_shapes
from transformers_lladav.sources import fetch
from transformers_lladav.weights import (
    MAX_SHARD_BYTES,
    CheckpointError,
    NewTensor,
    StoredTensor,
    read_json,
    tensor_problems,
)

CONSEQUENCE = "cannot be put together; nothing was written"
PROJECTOR = "model.multi_modal_projector."
NEWLINE = "model.image_newline"
PLACEHOLDERS = ("<image>", "<video>")
SEED_LIMIT = 2**64


@dataclass(frozen=True)
class Parts:
    """Where a fresh model comes from: folders or Hub ids, and a revision of each.

    Attributes:
        language: LLaDA in its original layout.
        vision: SigLIP, the whole model or its vision part.
        tokenizer: LLaDA's tokenizer; None for the one in `language`.
        language_revision: branch, tag or commit, if `language` is a Hub id.
        vision_revision: the same of `vision`.
        tokenizer_revision: the same of `tokenizer`.
    """

    language: str
    vision: str
    tokenizer: str | None = None
    language_revision: str | None = None
    vision_revision: str | None = None
    tokenizer_revision: str | None = None

    def __str__(self) -> str:
        return f"{self.language} and {self.vision}"


@dataclass(frozen=True)
class FreshPlan:
    """Everything that is known before the first byte is written.

    Attributes:
        plan: what the folder holds.
        dropped: keys of SigLIP that LLaDA-V does not use.
    """

    plan: Plan
    dropped: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One source, read.

    Attributes:
        config: content of its `config.json`.
        tensors: its tensors by native name.
        dropped: keys that LLaDA-V does not use.
        complete: whether all its files could be read.
    """

    config: dict[str, Any]
    tensors: Mapping[str, StoredTensor]
    dropped: tuple[str, ...]
    complete: bool


def make_plan(parts: Parts, seed: int, max_positions: int = MAX_POSITIONS, weights: bool = True) -> FreshPlan:
    """Read everything but the tensors' values, check it, and draw what is new.

    Args:
        parts: where it comes from.
        seed: decides the new tensors.
        max_positions: longest sequence.
        weights: whether the weights of Hub ids are downloaded; otherwise only their headers are.

    Returns:
        The plan.

    Raises:
        CheckpointError: listing every problem.
        ValueError: if the seed or `max_positions` cannot be used.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"seed={seed} must lie in 0..{SEED_LIMIT - 1}")
    if max_positions < 1:
        raise ValueError(f"max_positions={max_positions} must be at least 1; the default is {MAX_POSITIONS}")
    problems: list[str] = []
    language = _read_language(parts, weights, problems)
    vision = _read_vision(parts, weights, problems)
    tokenizer = _read_tokenizer(parts, problems)
    if language is None or vision is None:
        raise CheckpointError(str(parts), problems, CONSEQUENCE)
    stored = {**language.tensors, **vision.tensors}
    try:
        config = LladaVConfig(**translate_parts(language.config, vision.config, max_positions))
        shapes = model_shapes(config)
        new = {name: shape for name, shape in shapes.items() if name == NEWLINE or name.startswith(PROJECTOR)}
        expected = {name: shape for name, shape in shapes.items() if name not in new}
        problems += tensor_problems(stored, expected, complete=language.complete and vision.complete)
        processor = None if tokenizer is None else build_processor(config, tokenizer)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise CheckpointError(str(parts), [*problems, *str(error).splitlines()], CONSEQUENCE) from error
    if problems or processor is None:
        raise CheckpointError(str(parts), problems, CONSEQUENCE)
    drawn = draw_new_tensors(new, seed, main_dtype(language.tensors))
    tensors = {name: drawn[name] if name in drawn else stored[name] for name in shapes}
    return FreshPlan(Plan(str(parts), config, processor, tensors), vision.dropped)


def draw_new_tensors(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, NewTensor]:
    """Draw the projector and the newline vector, as official training starts them.

    The projector has the distribution of a new `torch.nn.Linear`, which the official code leaves as it is: weights and
    biases uniform between plus and minus 1 / sqrt(inputs). The newline vector is normal with standard deviation
    1 / sqrt(hidden), so that its length is about 1.

    A seed means the same bytes on every machine. Uniform numbers come from torch's generator for the CPU, in float32,
    and everything after that is arithmetic that rounds the same everywhere. That is why normal numbers are uniform
    ones put through the inverse of their distribution: `torch.randn` gives other bytes on other processors.

    Args:
        shapes: shape by native name; the tensors are drawn in this order.
        seed: of the generator.
        dtype: what they are rounded to.

    Returns:
        The tensors by name.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = {}
    for name, shape in shapes.items():
        uniform = torch.rand(shape, generator=generator)  # multiples of 2^-24 from 0 on, below 1
        if name == NEWLINE:
            normal = NormalDist(sigma=1 / math.sqrt(shape[0]))
            value = torch.tensor([normal.inv_cdf(number + 2**-25) for number in uniform.tolist()])
        else:
            _, inputs = shapes[f"{name.rpartition('.')[0]}.weight"]
            value = uniform.mul_(2).sub_(1).mul_(1 / math.sqrt(inputs))
        drawn[name] = NewTensor(value.to(dtype))
    return drawn


def _read_language(parts: Parts, weights: bool, problems: list[str]) -> Part | None:
    def translate_key(key: str, _: Mapping[str, Any]) -> str | None:
        return language_key(key)

    found: list[str] = []
    part = _read(parts.language, parts.language_revision, weights, language_problems, translate_key, found)
    problems += [f"language model: {problem}" for problem in found]
    return part


def _read_vision(parts: Parts, weights: bool, problems: list[str]) -> Part | None:
    def translate_key(key: str, siglip: Mapping[str, Any]) -> str | None:
        return vision_key(key, vision_layers(siglip) - 1)

    found: list[str] = []
    part = _read(parts.vision, parts.vision_revision, weights, vision_problems, translate_key, found)
    problems += [f"vision tower: {problem}" for problem in found]
    return part


def _read(
    source: str,
    revision: str | None,
    weights: bool,
    config_problems: Callable[[Mapping[str, Any]], list[str]],
    translate_key: Callable[[str, Mapping[str, Any]], str | None],
    problems: list[str],
) -> Part | None:
    """Read one part; what is wrong with it is added to `problems`. None if its configuration cannot be used."""
    try:
        folder = fetch(source, revision, weights)
    except (OSError, ValueError) as error:
        problems += str(error).splitlines()
        return None
    config = read_json(folder / "config.json", problems)
    usable = not problems
    if usable:
        problems += config_problems(config)
        usable = not problems
    before = len(problems)
    stored = list_tensors(source, folder, revision, weights, problems)
    complete = len(problems) == before
    if not usable:
        return None
    tensors, dropped = _translate_keys(stored, lambda key: translate_key(key, config), problems)
    return Part(config, tensors, dropped, complete)


def _translate_keys(
    stored: list[StoredTensor], translate: Callable[[str], str | None], problems: list[str]
) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    tensors: dict[str, StoredTensor] = {}
    dropped = []
    for tensor in stored:
        name = translate(tensor.key)
        if name is None:
            problems.append(f"unexpected tensor: {tensor.key} in {tensor.file.name}, shape {list(tensor.shape)}")
        elif name == "":
            dropped.append(tensor.key)
        elif name in tensors:
            problems.append(f"{tensor.key} and {tensors[name].key} are the same tensor")
        else:
            tensors[name] = tensor
    return tensors, tuple(dropped)


def _read_tokenizer(parts: Parts, problems: list[str]) -> Any:
    """LLaDA's tokenizer without LLaDA-V's placeholders, or None."""
    found: list[str] = []
    source, revision = parts.tokenizer, parts.tokenizer_revision
    if source is None:
        source, revision = parts.language, parts.language_revision
    tokenizer = None
    try:
        folder = fetch(source, revision, weights=False)
        if (folder / "tokenizer.json").is_file():
            tokenizer = read_tokenizer(folder, found)
        else:
            found.append(f"{source} has no tokenizer.json; give --tokenizer a folder or Hub id that has LLaDA's")
    except (OSError, ValueError) as error:
        found += str(error).splitlines()
    present = [name for name in PLACEHOLDERS if tokenizer is not None and name in tokenizer.get_vocab()]
    if present:
        found.append(f"{source} has {' and '.join(present)} in its vocabulary already; give LLaDA's own tokenizer")
    problems += [f"tokenizer: {problem}" for problem in found]
    return None if found else tokenizer


def build(
    parts: Parts,
    output: str | Path,
    seed: int = 0,
    max_positions: int = MAX_POSITIONS,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    show_progress: bool = False,
) -> Path:
    """Build a fresh LLaDA-V.

    Args:
        parts: where it comes from.
        output: folder to make; it must not exist or be empty.
        seed: decides the projector and the newline vector, nothing else.
        max_positions: longest sequence.
        dtype: type of the written tensors; by default each keeps its own, and new ones have the language model's.
        max_shard_bytes: size of the largest weight file, and with it the memory that is needed.
        show_progress: whether a bar is drawn on standard error.

    Returns:
        The output folder.

    Raises:
        FileExistsError: if the output folder has content.
        CheckpointError: if the parts are not complete or do not fit; lists every problem found.
        ValueError: if the seed or `max_positions` cannot be used.
        OSError: if the disk is too small.
    """
    output = Path(output)
    check_free(output)
    fresh = make_plan(parts, seed, max_positions)
    return write_plan(fresh.plan, output, CONSEQUENCE, dtype, max_shard_bytes, "building" if show_progress else None)


def describe_fresh(fresh: FreshPlan, dtype: torch.dtype | None, max_shard_bytes: int) -> Iterator[str]:
    """What would be written, every key, and what would not.

    Args:
        fresh: the plan.
        dtype: type of the written tensors, or None.
        max_shard_bytes: size of the largest weight file.

    Yields:
        Lines.
    """
    yield from describe(fresh.plan, dtype, max_shard_bytes)
    yield f"left out: {len(fresh.dropped)} tensors of the vision model that LLaDA-V does not use"
    for key in fresh.dropped:
        yield f"  {key}"


def main(argv: list[str] | None = None) -> int:
    """The command line.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(
        prog="build_from_parts.py",
        description="Put LLaDA and SigLIP together into a fresh LLaDA-V with a new projector and newline vector, "
        "ready to be trained. Everything is checked first; the output appears only when complete.",
    )
    parser.add_argument(
        "--language", required=True, metavar="SOURCE", help="folder or Hub id of LLaDA in its original layout (llada)"
    )
    parser.add_argument(
        "--vision", required=True, metavar="SOURCE", help="folder or Hub id of SigLIP, the whole or its vision part"
    )
    parser.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        help="folder or Hub id of LLaDA's tokenizer, if it does not lie beside the language model",
    )
    for part in ("language", "vision", "tokenizer"):
        parser.add_argument(f"--{part}-revision", metavar="NAME", help=f"branch, tag or commit of a Hub id (--{part})")
    parser.add_argument(
        "--seed", type=int, default=0, help="decides the projector and the newline vector (default: %(default)s)"
    )
    parser.add_argument(
        "--max-positions",
        type=int,
        default=MAX_POSITIONS,
        metavar="N",
        help="longest sequence; positions have no weights, so that it may exceed that of LLaDA (default: %(default)s)",
    )
    add_output_options(parser)
    arguments = parse(parser, argv)
    if arguments.tokenizer_revision is not None and arguments.tokenizer is None:
        parser.error("--tokenizer-revision goes with --tokenizer; of the language model's it is --language-revision")
    parts = Parts(
        arguments.language,
        arguments.vision,
        arguments.tokenizer,
        arguments.language_revision,
        arguments.vision_revision,
        arguments.tokenizer_revision,
    )
    dtype, shard_bytes = chosen_dtype(arguments), chosen_shard_bytes(arguments)
    seed, positions = arguments.seed, arguments.max_positions
    if arguments.dry_run:
        print("\n".join(describe_fresh(make_plan(parts, seed, positions, weights=False), dtype, shard_bytes)))
        return 0
    print(f"wrote {build(parts, arguments.output, seed, positions, dtype, shard_bytes, True)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
