"""Weights from strangers: safetensors headers, indexes, and what stands beside them."""

import json
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from fuzzing import Finding, attempt, changed, damaged, json_bytes, numbers, scalars
from transformers_lladav import BUNDLED_CHECKPOINT
from transformers_lladav.card_facts import read_weights
from transformers_lladav.official_folder_lladav import stored_shapes
from transformers_lladav.verification import Report, verify
from transformers_lladav.weights import INDEX, by_native_name, read_tensors, scan_folder, stored_origin

HEADER = {
    "__metadata__": {"format": "pt", "converted_from": "owner/name@1"},
    "model.image_newline": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "lm_head.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8, 16]},
    "model.norm.weight": {"dtype": "F16", "shape": [], "data_offsets": [16, 18]},
}
INDEXED = {
    "metadata": {"total_size": 18},
    "weight_map": {"model.image_newline": "model.safetensors", "lm_head.weight": "model.safetensors"},
}
SAFE = Path(BUNDLED_CHECKPOINT) / "config.json"
sizes = numbers | scalars | st.lists(numbers, max_size=3)


@st.composite
def files(draw: Any) -> bytes:
    """A header, its length and values, each perhaps wrong."""
    header = draw(json_bytes(changed(HEADER, replacements=sizes)))
    length = draw(st.just(len(header)) | st.just(len(header)) | st.integers(0, 2**64 - 1))
    body = draw(st.just(bytes(18)) | st.just(b"\xff" * 18) | st.binary(max_size=40))
    return struct.pack("<Q", length) + header + body


@cache
def whole() -> bytes:
    """A file that is right."""
    header = json.dumps(HEADER).encode()
    return struct.pack("<Q", len(header)) + header + bytes(18)


NAMES = st.sampled_from(
    ("model.safetensors", "model-00001-of-00002.safetensors", "model-00001-of-99999.safetensors", "x.safetensors")
)
STRATEGY = st.tuples(
    st.dictionaries(NAMES, files() | st.deferred(lambda: damaged((whole(),))), max_size=2),
    st.none() | json_bytes(changed(INDEXED)),
    st.sampled_from((None, None, "pytorch_model.bin", "weights.PT", "model.pkl.safetensors", "..bin")),
)


def check(case: Any, place: Path) -> str:
    """Scan, read and verify a folder; every problem must be a sentence, and nothing may be raised."""
    shards, index, other = case
    folder = place / "weights"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(SAFE, folder)
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    if index is not None:
        (folder / INDEX).write_bytes(index)
    if other is not None:
        (folder / other).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    problems: list[str] = []
    found = attempt(scan_folder, folder, problems, refusals=())
    if not all(isinstance(problem, str) and problem.strip() for problem in problems):
        raise Finding(f"problems without words: {problems}")
    if other in ("pytorch_model.bin", "weights.PT", "..bin") and not any("pickle" in problem for problem in problems):
        raise Finding(f"{other} was not noticed")
    tensors = by_native_name(found, problems)
    for name, value in attempt(lambda: list(read_tensors(tensors)), refusals=()):
        if tuple(value.shape) != tensors[name].shape or value.nbytes != tensors[name].nbytes:
            raise Finding(f"{name} is {tuple(value.shape)}, not {tensors[name].shape}")
    attempt(stored_origin, folder, refusals=())
    attempt(stored_shapes, folder, refusals=ValueError)
    attempt(read_weights, folder, refusals=ValueError)
    report = attempt(verify, folder, refusals=())
    if not isinstance(report, Report) or not report.errors:
        raise Finding(f"a folder of rubbish passes: {report}")
    return "taken" if found else "refused"
