"""Two checkpoint folders, tensor by tensor, whatever their layouts and however they are cut into files."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .weights import CHUNK, Progress, StoredTensor, by_native_name, read_tensors, scan_folder


@dataclass(frozen=True)
class Comparison:
    """One tensor in two folders.

    Attributes:
        name: its native name.
        equal: whether shape, type and all bytes are equal.
        text: in what they differ.
    """

    name: str
    equal: bool
    text: str


def compare(folder: Path, other: Path, progress: Progress | None = None) -> Iterator[Comparison]:
    """Compare two folders tensor by tensor, whatever their layouts and file sizes.

    Args:
        folder: a checkpoint.
        other: another.
        progress: told of the bytes done and of all.

    Yields:
        A comparison per tensor of either.

    Raises:
        ValueError: if one of them cannot be read.
    """
    sides: list[dict[str, StoredTensor]] = []
    for side in (folder, other):
        problems: list[str] = []
        sides.append(by_native_name(scan_folder(side, problems), problems))
        if problems:
            raise ValueError(f"{side}:\n" + "\n".join(f"- {problem}" for problem in problems))
    ours, theirs = sides
    shared = [name for name in ours if name in theirs]
    yield from (Comparison(name, False, f"only in {folder}") for name in ours if name not in theirs)
    yield from (Comparison(name, False, f"only in {other}") for name in theirs if name not in ours)
    done, total = 0, sum(ours[name].nbytes for name in shared)
    pairs = zip(
        read_tensors({name: ours[name] for name in shared}),
        read_tensors({name: theirs[name] for name in shared}),
        strict=True,
    )
    for (name, left), (_, right) in pairs:
        text = _difference(left, right)
        yield Comparison(name, not text, text)
        done += ours[name].nbytes
        if progress is not None:
            progress(done, total)


def _difference(left: torch.Tensor, right: torch.Tensor) -> str:
    if left.shape != right.shape:
        return f"shapes {list(left.shape)} and {list(right.shape)}"
    kinds = "" if left.dtype == right.dtype else f"types {left.dtype} and {right.dtype}, ".replace("torch.", "")
    if not kinds and torch.equal(_bits(left), _bits(right)):
        return ""
    largest = max(_largest_difference(a, b) for a, b in _pieces(left, right))
    if largest == 0:
        return f"{kinds}equal values" if kinds else "equal values, other bits (zeros of another sign, or NaN)"
    return f"{kinds}largest difference {largest:.3g}"


def _largest_difference(left: torch.Tensor, right: torch.Tensor) -> float:
    """Of two pieces; none where neither is a number, for NaN would hide all others, infinite where only one is."""
    ours, theirs = left.float(), right.float()
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    different = (ours - theirs).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).masked_fill(same, 0)
    return float(different.amax()) if len(different) else 0.0


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32)


def _pieces(left: torch.Tensor, right: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(left.flatten().split(CHUNK), right.flatten().split(CHUNK), strict=True)
