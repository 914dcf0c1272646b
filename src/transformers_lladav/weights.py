"""Tensors on disk: what a folder of safetensors files holds, what is wrong with it, and how it is written.

Reading goes by headers; values are looked at one tensor at a time, so that memory does not grow with the checkpoint.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .checkpoint_keys_lladav import native_key
from .strict_json import loads

INDEX = "model.safetensors.index.json"
MAX_SHARD_BYTES = 2 * 10**9
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
PICKLE_STARTS = (b"PK", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")  # torch.save makes zip archives of them
# What a training run leaves beside its weights; neither opened nor copied.
TRAINING_STATE = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state")
# Buffers that older releases stored and that are computed here.
COMPUTED_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
ORIGIN = "converted_from"
LISTED = 30  # problems in a message, so that it fits a screen
CHUNK = 1 << 20  # entries looked at together

Advance = Callable[[int], None]
Progress = Callable[[int, int], None]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message lists the reasons.

    Attributes:
        problems: all of them.

    Args:
        source: the folder or Hub id.
        problems: one sentence each.
        consequence: what did not happen because of them.
    """

    def __init__(
        self,
        source: Path | str,
        problems: Iterable[str],
        consequence: str = "cannot be converted; nothing was written",
    ) -> None:
        self.problems = list(problems)
        listing = "\n".join(f"- {problem}" for problem in self.problems[:LISTED])
        if (more := len(self.problems) - LISTED) > 0:
            listing += f"\n... and {more} more, {len(self.problems)} in all"
        super().__init__(f"{source} {consequence}:\n{listing}")


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

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class NewTensor:
    """A tensor that is in memory because no file has it.

    Attributes:
        value: the tensor.
    """

    value: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Its element type."""
        return self.value.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.value.nbytes


Tensors = Mapping[str, StoredTensor | NewTensor]


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """Read a file that must hold a JSON object.

    Args:
        path: the file.
        problems: gets a sentence if it cannot be read.

    Returns:
        Its content, or nothing.
    """
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name} holds a {type(content).__name__}, not an object")
        return {}
    return content


def pickle_problems(names: Iterable[str]) -> list[str]:
    """Weights in a format that runs code when it is opened.

    Args:
        names: file names of a checkpoint.

    Returns:
        One sentence per file.
    """
    return [
        f"{name} is a pickle, which can run any code when it is opened; it is refused. Save its tensors as "
        "safetensors on a machine you can afford to lose, or remove it if the folder has safetensors as well"
        for name in sorted(names)
        if name.lower().endswith(PICKLES) and not name.startswith(TRAINING_STATE)
    ]


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint.

    Args:
        folder: the checkpoint.

    Returns:
        Files called `model*.safetensors`, as transformers loads them, and those that an index names; if there are
        none, all safetensors files.
    """
    try:
        named = set(loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        named = set()
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if file.name in named or file.name.startswith("model")] or files


def scan_folder(folder: Path, problems: list[str]) -> list[StoredTensor]:
    """Read the headers of all safetensors files of a checkpoint, and compare them with its index.

    Args:
        folder: the checkpoint.
        problems: gets a sentence for every pickle, for every missing, unreadable or unlisted file, and for every
            tensor of an unknown type or in two files.

    Returns:
        Every tensor that can be read, file by file.
    """
    problems += pickle_problems(path.name for path in folder.glob("*"))
    files = weight_files(folder)
    if not files:
        problems.append("there are no *.safetensors files")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in _scan_file(file, problems):
            if tensor.key in tensors:
                problems.append(f"{tensor.key} is in {tensors[tensor.key].file.name} and again in {file.name}")
            tensors[tensor.key] = tensor
    names = {file.name for file in files}
    if (folder / INDEX).is_file():
        problems += _index_problems(read_json(folder / INDEX, problems), names, tensors)
    else:
        problems += _missing_numbers(names)
    return list(tensors.values())


def by_native_name(stored: Iterable[StoredTensor], problems: list[str]) -> dict[str, StoredTensor]:
    """Tensors of a native or official checkpoint by their native names.

    Args:
        stored: the tensors.
        problems: gets a sentence for every tensor that is there under both names.

    Returns:
        The tensors.
    """
    tensors: dict[str, StoredTensor] = {}
    for tensor in stored:
        name = native_key(tensor.key)
        if name in tensors:
            problems.append(f"{tensor.key} and {tensors[name].key} are the same tensor")
        tensors[name] = tensor
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
        problems.append(f"{file.name} {_what_is_wrong(file, error)}")
    return found


def _what_is_wrong(file: Path, error: Exception) -> str:
    with suppress(OSError), file.open("rb") as handle:
        if handle.read(2) in PICKLE_STARTS:
            return "is a pickle or an archive of one, whatever its name says; it is refused"
    return f"is truncated or damaged ({error}); download it again"


def _index_problems(index: dict[str, Any], files: set[str], tensors: Mapping[str, StoredTensor]) -> list[str]:
    """Places in the index where nothing is, or that no checkpoint should name."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        return [f"{INDEX} has no weight_map from tensor to file name"] if index else []
    listed = set(weight_map.values())
    outside = {name for name in listed if Path(name).name != name or "\\" in name or name.startswith("..")}
    problems = [
        f"{INDEX} names {name!r}, which is not a file of this folder; it is refused" for name in sorted(outside)
    ]
    missing = listed - files - outside
    problems += [f"{name} is missing, but {INDEX} names it" for name in sorted(missing)]
    problems += [f"{name} is not in {INDEX}; remove it or put its name right" for name in sorted(files - listed)]
    problems += [
        f"{key} should be in {name} by {INDEX}, but is in {tensors[key].file.name}"
        for key, name in sorted(weight_map.items())
        if key in tensors and tensors[key].file.name != name and name not in missing | outside
    ]
    return problems


def _missing_numbers(files: set[str]) -> list[str]:
    """Numbered files of which one is not there, when no index could tell."""
    numbered = [match for name in sorted(files) if (match := NUMBERED.fullmatch(name))]
    expected = {f"{m[1]}-{n:05d}-of-{m[3]}.safetensors" for m in numbered for n in range(1, min(int(m[3]), 999) + 1)}
    return [f"{name} is missing" for name in sorted(expected - files)]


def tensor_problems(
    tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], complete: bool = True
) -> list[str]:
    """Compare what is there with what the model needs.

    Args:
        tensors: what a checkpoint holds, by native name.
        expected: shape by native name.
        complete: whether all files could be read; if not, what is missing is no news.

    Returns:
        One sentence per missing, unexpected or wrongly shaped tensor.
    """
    missing = [name for name in expected if name not in tensors] if complete else []
    problems = [f"missing tensor: {name} {list(expected[name])}" for name in missing]
    for name, tensor in tensors.items():
        where = f"{tensor.key} in {tensor.file.name}"
        if name not in expected:
            problems.append(f"unexpected tensor: {where}, shape {list(tensor.shape)}")
        elif tensor.shape != expected[name]:
            problems.append(f"wrong shape: {where} is {list(tensor.shape)}, config.json needs {list(expected[name])}")
    return problems


def read_tensors(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """The values of many tensors, one after the other, opening every file once.

    Args:
        tensors: what to read. Stored ones are views of their file: they take memory while they are looked at.

    Yields:
        Name and value, in the order given.
    """
    with ExitStack() as stack:
        handles: dict[Path, Any] = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, NewTensor):
                yield name, tensor.value
                continue
            if tensor.file not in handles:
                handles[tensor.file] = stack.enter_context(safe_open(tensor.file, framework="pt"))
            yield name, handles[tensor.file].get_tensor(tensor.key)


def count_non_finite(tensor: torch.Tensor) -> int:
    """Entries that are NaN or infinite, of any floating or complex type.

    A finite sum has only finite terms, and is found many times faster; piece by piece a large tensor needs no copy.
    """
    count = 0
    for stored in tensor.flatten().split(CHUNK):
        piece = stored.float() if stored.dtype.itemsize == 1 else stored  # torch cannot look at numbers of 8 bits
        if not torch.isfinite(piece.sum(dtype=None if piece.is_complex() else torch.float32)):
            count += int((~torch.isfinite(piece)).sum())
    return count


def bytes_after(tensors: Tensors, dtype: torch.dtype | None) -> int:
    """Size of tensors once converted.

    Args:
        tensors: the tensors.
        dtype: the type they are converted to, or None.

    Returns:
        Bytes.
    """
    return sum(torch.Size(tensor.shape).numel() * (dtype or tensor.dtype).itemsize for tensor in tensors.values())


def plan_shards(
    tensors: Tensors, dtype: torch.dtype | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> dict[str, list[str]]:
    """Deal tensors out to files.

    Args:
        tensors: what to write, by name.
        dtype: the type they are converted to, or None.
        max_shard_bytes: size of the largest file; a larger tensor gets a file of its own.

    Returns:
        Names of tensors by file name, in the order given.
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        more = bytes_after({name: tensor}, dtype)
        if shards[-1] and size + more > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": names for n, names in enumerate(shards, start=1)}


def write_weights(
    tensors: Tensors,
    folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Advance | None = None,
    origin: str | None = None,
) -> list[str]:
    """Copy tensors into a folder, one output file in memory at a time.

    Args:
        tensors: what to write, by the name it gets.
        folder: an existing folder.
        dtype: the type to convert to, or None to keep each tensor's own.
        max_shard_bytes: size of the largest file, and with it the memory that is needed.
        advance: told of bytes: of each tensor that has been read and of each file that has been written, together
            twice `bytes_after(tensors, dtype)`.
        origin: the Hub repository they come from, as `stored_origin` gives it back.

    Returns:
        A sentence per tensor that holds NaN or infinite values; everything is written all the same.

    Raises:
        OSError: if a file cannot be written.
    """
    advance = advance or (lambda _: None)
    shards = plan_shards(tensors, dtype, max_shard_bytes)
    metadata = {"format": "pt"} | ({ORIGIN: origin} if origin else {})
    problems: list[str] = []
    for file, names in shards.items():
        values: dict[str, torch.Tensor] = {}
        for name, value in read_tensors({name: tensors[name] for name in names}):
            values[name] = value.to(dtype or value.dtype).contiguous()
            if bad := count_non_finite(values[name]):
                problems.append(_non_finite(name, tensors[name], bad, value, values[name]))
            advance(values[name].nbytes)
        try:
            save_file(values, folder / file, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{file} cannot be written ({error}); is the disk full?") from error
        (folder / file).chmod(0o644)  # safetensors makes files for the owner only
        advance(sum(value.nbytes for value in values.values()))
    if len(shards) > 1:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {
            "metadata": {"total_size": bytes_after(tensors, dtype)},
            "weight_map": dict(sorted(weight_map.items())),
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return problems


def stored_origin(folder: Path) -> str | None:
    """The Hub repository whose tensors a folder holds under other names.

    It stands in the header of every weight file; transformers leaves it out when it saves a model, so that what was
    trained further does not claim it.

    Args:
        folder: a checkpoint.

    Returns:
        Such as `GSAI-ML/LLaDA-V`, with `@` and the commit if that is known; None if a file does not say, cannot be
        read, or says something else than another.
    """
    origins: set[str | None] = set()
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as handle:
                origins.add((handle.metadata() or {}).get(ORIGIN))
        except (SafetensorError, OSError):
            return None
    return origins.pop() if len(origins) == 1 else None


def _non_finite(name: str, tensor: StoredTensor | NewTensor, bad: int, before: Any, after: torch.Tensor) -> str:
    where = f"{tensor.key} in {tensor.file.name}" if isinstance(tensor, StoredTensor) else name
    if count_non_finite(before):
        return f"{where} holds {bad} NaN or infinite values"
    return f"{where} holds {bad} values too large for {after.dtype}; choose another --dtype"
