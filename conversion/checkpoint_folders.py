"""What the conversion scripts share: reading the parts of a checkpoint folder, and writing a whole one."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from command_line import progress_bar
from transformers_lladav.files import check_space, new_folder
from transformers_lladav.sources import is_hub_id, remote_headers
from transformers_lladav.weights import (
    MAX_SHARD_BYTES,
    CheckpointError,
    StoredTensor,
    Tensors,
    bytes_after,
    plan_shards,
    scan_folder,
    write_weights,
)

BESIDE_WEIGHTS = 20 * 10**6  # bytes of tokenizer, code and configurations, generously


def list_tensors(
    source: str, folder: Path, revision: str | None, weights: bool, problems: list[str]
) -> list[StoredTensor]:
    """The tensors of a checkpoint.

    Args:
        source: a folder or a Hub id.
        folder: what `sources.fetch` made of it.
        revision: branch, tag or commit of a Hub id.
        weights: whether the weights of a Hub id were fetched; otherwise their headers are.
        problems: gets a sentence for everything that is wrong with the files.

    Returns:
        Every tensor, file by file.
    """
    if weights or not is_hub_id(source):
        return scan_folder(folder, problems)
    return remote_headers(source, revision, problems)


def read_tokenizer(folder: Path, problems: list[str]) -> Any:
    """The tokenizer of a folder.

    Args:
        folder: the folder.
        problems: gets a sentence if it cannot be read.

    Returns:
        The tokenizer, or None.
    """
    if not (folder / "tokenizer.json").is_file():
        problems.append("tokenizer.json is missing; copy the tokenizer files of the release into the folder")
        return None
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        problems.append(f"the tokenizer cannot be read: {error}")
        return None


def main_dtype(tensors: Mapping[str, Any]) -> torch.dtype:
    """The type of most parameters."""
    parameters: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        parameters[tensor.dtype] += torch.Size(tensor.shape).numel()
    return parameters.most_common(1)[0][0]


def describe_files(tensors: Tensors, dtype: torch.dtype | None, max_shard_bytes: int) -> Iterator[str]:
    """What weight files would be written, every key.

    Args:
        tensors: by the name they get.
        dtype: type of the written tensors, or None.
        max_shard_bytes: size of the largest weight file.

    Yields:
        Lines.
    """
    for file, names in plan_shards(tensors, dtype, max_shard_bytes).items():
        size = bytes_after({name: tensors[name] for name in names}, dtype)
        yield f"{file}: {len(names)} tensors, {size / 1e9:.2f} GB"
        for name in names:
            tensor = tensors[name]
            kind = str(dtype or tensor.dtype).removeprefix("torch.")
            before = tensor.key if isinstance(tensor, StoredTensor) else "(new)"
            yield f"  {before} -> {name}  {list(tensor.shape)} {kind}"


def write_folder(
    output: Path,
    source: str,
    tensors: Tensors,
    write_rest: Callable[[Path], None],
    consequence: str,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress_title: str | None = None,
    origin: str | None = None,
) -> Path:
    """Write a checkpoint folder that appears only when it is complete.

    Args:
        output: where it will stand; it must not exist or be empty.
        source: where the tensors come from, for errors.
        tensors: what to write, by the name it gets.
        write_rest: writes everything but the weights into the folder it is given.
        consequence: what does not happen if a tensor holds NaN or infinite values.
        dtype: type of the written tensors; by default each keeps its own.
        max_shard_bytes: size of the largest weight file.
        progress_title: what the bar on standard error says; None for no bar.
        origin: as for `write_weights`.

    Returns:
        The output folder.

    Raises:
        FileExistsError: if the output folder has content.
        CheckpointError: listing the tensors that hold NaN or infinite values.
        OSError: if the disk is too small.
    """
    size = bytes_after(tensors, dtype)
    check_space(output, size + BESIDE_WEIGHTS)
    with new_folder(output) as folder:
        if progress_title is None:
            problems = write_weights(tensors, folder, dtype, max_shard_bytes, origin=origin)
        else:
            with progress_bar(progress_title, 2 * size) as advance:
                problems = write_weights(tensors, folder, dtype, max_shard_bytes, advance, origin)
        if problems:
            raise CheckpointError(source, problems, consequence)
        write_rest(folder)
    return output
