"""Tensor files are read by their headers and written whole in shards, and values that are no numbers are named."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from transformers_lladav.weights import (
    CheckpointError,
    NewTensor,
    by_native_name,
    bytes_after,
    count_non_finite,
    pickle_problems,
    plan_shards,
    read_json,
    read_tensors,
    scan_folder,
    stored_origin,
    tensor_problems,
    write_weights,
)


@pytest.fixture
def folder(tmp_path):
    """Three tensors in two files: 24 + 8 and 12 bytes."""
    save_file({"b": torch.arange(6.0).view(2, 3), "a": torch.zeros(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"c": torch.ones(6, dtype=torch.bfloat16)}, tmp_path / "model-00002-of-00002.safetensors")
    return tmp_path


def scanned(folder):
    problems = []
    tensors = {tensor.key: tensor for tensor in scan_folder(folder, problems)}
    assert problems == []
    return tensors


def test_headers_tell_shape_type_and_size(folder):
    found = scanned(folder)
    assert {key: (tensor.shape, tensor.dtype, tensor.nbytes) for key, tensor in found.items()} == {
        "a": ((2,), torch.float32, 8),
        "b": ((2, 3), torch.float32, 24),
        "c": ((6,), torch.bfloat16, 12),
    }
    assert found["c"].file == folder / "model-00002-of-00002.safetensors"


def test_values_come_in_the_order_asked_for(folder):
    found = scanned(folder)
    mixed = {"x": found["c"], "y": NewTensor(torch.tensor([7.0])), "z": found["b"]}
    values = dict(read_tensors(mixed))
    assert list(values) == ["x", "y", "z"]
    assert values["z"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert values["y"].tolist() == [7]


def test_files_are_filled_in_order_and_a_large_tensor_has_its_own():
    sizes = {"a": 3, "b": 2, "c": 9, "d": 1, "e": 4}
    tensors = {name: NewTensor(torch.zeros(size)) for name, size in sizes.items()}
    assert list(plan_shards(tensors, max_shard_bytes=20).values()) == [["a", "b"], ["c"], ["d", "e"]]
    # Half the bytes in half precision: c and d fit together.
    assert list(plan_shards(tensors, torch.bfloat16, 20).values()) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(plan_shards({"c": tensors["c"], "d": tensors["d"]}, max_shard_bytes=20).values()) == [["c"], ["d"]]
    assert plan_shards(tensors, max_shard_bytes=76) == {"model.safetensors": list(sizes)}
    assert list(plan_shards(tensors, max_shard_bytes=75)) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    assert (bytes_after(tensors, None), bytes_after(tensors, torch.float16)) == (76, 38)


def test_written_files_hold_the_tensors_and_the_index_says_where(folder, tmp_path):
    found, told = scanned(folder), []
    output = tmp_path / "out"
    output.mkdir()
    assert write_weights(found, output, max_shard_bytes=30, advance=told.append) == []
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 44
    assert sum(told) == 2 * 44
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(output / file)[name], dict(read_tensors(found))[name])
    assert scanned(output).keys() == found.keys()
    assert {path.stat().st_mode & 0o777 for path in output.glob("*.safetensors")} == {0o644}


def test_conversion_of_types(folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    assert write_weights(scanned(folder), output, torch.float16) == []
    written = load_file(output / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert written["b"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_that_are_no_numbers_are_counted(dtype):
    values = torch.full((1500, 1500), 1.0, dtype=dtype)  # more than one piece
    assert count_non_finite(values) == 0
    values[0, 0], values[700, 3], values[1499, 1499] = float("nan"), float("inf"), float("-inf")
    assert count_non_finite(values) == 3
    assert count_non_finite(torch.tensor([float("inf"), float("-inf")], dtype=dtype)) == 2


def test_a_sum_that_overflows_is_no_finding():
    assert count_non_finite(torch.full((1000,), torch.finfo(torch.float32).max)) == 0
    assert count_non_finite(torch.full((1000,), torch.finfo(torch.bfloat16).max, dtype=torch.bfloat16)) == 0
    assert count_non_finite(torch.empty(0)) == 0


def test_entries_of_every_kind_that_a_file_may_hold_are_counted():
    half = torch.tensor([complex(1, float("nan")), complex(float("inf"), 1), complex(1, 2)])
    assert count_non_finite(half) == 2
    eighths = torch.tensor([1.0, float("nan"), float("nan")])
    assert count_non_finite(eighths.to(torch.float8_e4m3fn)) == count_non_finite(eighths.to(torch.float8_e5m2)) == 2


def test_bad_values_are_named_with_their_file_or_with_the_type_they_do_not_fit(tmp_path):
    save_file({"a": torch.tensor([float("nan"), 1.0]), "b": torch.tensor([1e6, 1.0])}, tmp_path / "model.safetensors")
    output = tmp_path / "out"
    output.mkdir()
    new = {"new": NewTensor(torch.tensor([float("inf")]))}
    assert write_weights(scanned(tmp_path) | new, output, torch.float16) == [
        "a in model.safetensors holds 1 NaN or infinite values",
        "b in model.safetensors holds 1 values too large for torch.float16; choose another --dtype",
        "new holds 1 NaN or infinite values",
    ]


def test_a_tensor_that_is_not_contiguous_is_written(tmp_path):
    value = torch.arange(6.0).view(2, 3)
    assert write_weights({"x": NewTensor(value.T)}, tmp_path) == []
    assert torch.equal(load_file(tmp_path / "model.safetensors")["x"], value.T)


def test_the_origin_is_kept_if_all_files_agree(folder, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    write_weights(scanned(folder), output, max_shard_bytes=30, origin="owner/name@0123abc")
    assert stored_origin(output) == "owner/name@0123abc"
    assert stored_origin(folder) is None
    first = min(output.glob("*.safetensors"))
    save_file(load_file(first), first, metadata={"format": "pt", "converted_from": "owner/other"})
    assert stored_origin(output) is None
    first.write_bytes(b"")
    assert stored_origin(output) is None


def index(folder, **weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    problems = []
    scan_folder(folder, problems)
    return problems


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def test_an_index_that_fits(folder):
    assert index(folder, a=FIRST, b=FIRST, c=SECOND) == []


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/x.safetensors", "..", "sub/x.safetensors", "..\\x.safetensors"]
)
def test_an_index_may_not_leave_the_folder(folder, name):
    (problem,) = index(folder, a=FIRST, b=FIRST, c=SECOND, d=name)
    assert problem.endswith("which is not a file of this folder; it is refused")


def test_a_renamed_file_is_two_problems_and_no_more(folder):
    (folder / SECOND).rename(folder / "model-00003-of-00003.safetensors")
    assert index(folder, a=FIRST, b=FIRST, c=SECOND) == [
        f"{SECOND} is missing, but model.safetensors.index.json names it",
        "model-00003-of-00003.safetensors is not in model.safetensors.index.json; remove it or put its name right",
    ]


def test_a_tensor_in_another_file_than_the_index_says(folder):
    (problem,) = index(folder, a=SECOND, b=FIRST, c=SECOND)
    assert problem == f"a should be in {SECOND} by model.safetensors.index.json, but is in {FIRST}"


@pytest.mark.parametrize("absent", [FIRST, SECOND])
def test_numbers_tell_what_is_missing_without_an_index(folder, absent):
    (folder / absent).unlink()
    problems = []
    scan_folder(folder, problems)
    assert problems == [f"{absent} is missing"]


def test_files_beside_the_weights_are_not_read(folder):
    save_file({"a": torch.ones(1)}, folder / "consolidated.safetensors")
    assert scanned(folder).keys() == {"a", "b", "c"}
    (folder / FIRST).rename(folder / "part.safetensors")
    assert index(folder, a="part.safetensors", b="part.safetensors", c=SECOND) == []


def test_computed_buffers_are_passed_over(folder):
    file = folder / "model-00002-of-00002.safetensors"
    save_file(load_file(file) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, file)
    assert scanned(folder).keys() == {"a", "b", "c"}


def test_the_same_tensor_under_both_names(tmp_path):
    names = ["model.norm.weight", "model.language_model.norm.weight"]
    save_file({name: torch.ones(2) for name in names}, tmp_path / "model.safetensors")
    problems = []
    assert list(by_native_name(scan_folder(tmp_path, problems), problems)) == names[1:]
    assert len(problems) == 1
    assert re.search("are the same tensor", problems[0])


def test_pickles_are_named_and_training_state_is_not():
    names = ["a.bin", "b.pt", "c.safetensors", "training_args.bin", "optimizer.pt", "rng_state_0.pth", "x.pkl"]
    assert [sentence.split()[0] for sentence in pickle_problems(names)] == ["a.bin", "b.pt", "x.pkl"]


def test_shapes_are_compared_and_missing_tensors_only_if_all_files_were_read(folder):
    found = scanned(folder)
    expected = {"a": (2,), "b": (3, 2), "d": (1,)}
    problems = tensor_problems(found, expected)
    assert problems == [
        "missing tensor: d [1]",
        "wrong shape: b in model-00001-of-00002.safetensors is [2, 3], config.json needs [3, 2]",
        "unexpected tensor: c in model-00002-of-00002.safetensors, shape [6]",
    ]
    assert tensor_problems(found, expected, complete=False) == problems[1:]


def test_a_long_list_is_cut_to_a_screen_and_kept_whole():
    error = CheckpointError("here", [f"problem {n}" for n in range(100)], "is no good")
    assert str(error).startswith("here is no good:\n- problem 0\n")
    assert str(error).endswith("- problem 29\n... and 70 more, 100 in all")
    assert len(error.problems) == 100


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "is missing"), ("{", "cannot be read"), ("[]", "holds a list"), ("\0", "cannot be")]
)
def test_files_that_are_no_json_objects(tmp_path, content, reason):
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    problems = []
    assert read_json(tmp_path / "x.json", problems) == {}
    assert len(problems) == 1
    assert reason in problems[0]
