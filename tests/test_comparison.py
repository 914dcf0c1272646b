"""Two folders differ in exactly the tensors that were changed, by bits, and the largest difference is told."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import parity
from transformers_lladav.comparison import compare


@pytest.fixture
def changed(converted_folder, tmp_path):
    """A copy of the converted folder, with a function that changes its tensors."""
    folder = shutil.copytree(converted_folder, tmp_path / "changed")

    def change(function):
        tensors = load_file(folder / "model.safetensors")
        function(tensors)
        save_file(tensors, folder / "model.safetensors")
        return {item.name: item.text for item in compare(converted_folder, folder) if not item.equal}

    return change


NEWLINE, NORM = "model.image_newline", "model.language_model.norm.weight"


def test_layouts_and_files_do_not_matter(converted_folder):
    told = []
    found = list(compare(converted_folder, parity.OFFICIAL, lambda *figures: told.append(figures)))
    assert len(found) == 88
    assert all(item.equal and not item.text for item in found)
    sizes = sum(tensor.nbytes for tensor in load_file(converted_folder / "model.safetensors").values())
    assert told[-1] == (sizes, sizes)


def test_the_largest_difference_is_told(changed):
    def change(tensors):
        tensors[NEWLINE][:2] = 0
        tensors[NORM][0], tensors[NORM][3] = tensors[NORM][0] + 0.5, tensors[NORM][3] - 2

    def other_way(tensors):
        tensors[NORM][3] += 4  # 2 more than it was before

    def zero(tensors):
        tensors[NEWLINE][:2] = 1

    assert changed(change)[NORM] == "largest difference 2"
    assert changed(other_way)[NORM] == "largest difference 2"
    assert set(changed(zero)) == {NEWLINE, NORM}


def test_types_shapes_and_absent_tensors(changed, converted_folder):
    def change(tensors):
        tensors[NEWLINE] = tensors[NEWLINE].float()
        tensors[NORM] = torch.ones(3)
        tensors["extra"] = torch.ones(1)
        del tensors["lm_head.weight"]

    found = changed(change)
    assert found[NEWLINE] == "types bfloat16 and float32, equal values"
    assert found[NORM] == "shapes [32] and [3]"
    assert found["lm_head.weight"] == f"only in {converted_folder}"
    assert found["extra"].startswith("only in ")
    assert len(found) == 4


def test_bits_are_compared_not_values(tmp_path):
    for name, values in {"a": [0.0, float("nan")], "b": [-0.0, float("nan")], "c": [0.0, float("nan")]}.items():
        (tmp_path / name).mkdir()
        save_file({"x": torch.tensor(values)}, tmp_path / name / "model.safetensors")
    (other,) = compare(tmp_path / "a", tmp_path / "b")
    assert not other.equal
    (same,) = compare(tmp_path / "a", tmp_path / "c")
    assert same.equal


def test_equal_bits_of_another_type_are_a_difference(tmp_path):
    for name, dtype in {"a": torch.bfloat16, "b": torch.float16}.items():
        (tmp_path / name).mkdir()
        save_file({"x": torch.zeros(2, dtype=dtype)}, tmp_path / name / "model.safetensors")
    (found,) = compare(tmp_path / "a", tmp_path / "b")
    assert (found.equal, found.text) == (False, "types bfloat16 and float16, equal values")


def test_a_folder_that_cannot_be_read(converted_folder, tmp_path):
    with pytest.raises(ValueError, match=r"there are no \*.safetensors files"):
        list(compare(converted_folder, tmp_path))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([NAN, INF, 1.0], [NAN, INF, 3.0], "largest difference 2"),
        ([NAN, -INF], [NAN, -INF], "types float32 and float16, equal values"),
        ([1.0], [NAN], "largest difference inf"),
        ([INF], [-INF], "largest difference inf"),
        ([], [], "types float32 and float16, equal values"),
    ],
)
def test_what_is_no_number_on_both_sides_hides_no_difference(tmp_path, left, right, expected):
    narrow = expected.startswith("types")
    for name, values in (("a", left), ("b", right)):
        (tmp_path / name).mkdir()
        dtype = torch.float16 if narrow and name == "b" else torch.float32
        save_file({"x": torch.tensor(values, dtype=dtype)}, tmp_path / name / "model.safetensors")
    (found,) = compare(tmp_path / "a", tmp_path / "b")
    assert found.text == expected


def test_a_nan_of_other_bits_is_told_as_such(tmp_path):
    for name, bits in (("a", 0x7FC00000), ("b", 0x7FC00001)):  # a NaN of float32, and another one
        (tmp_path / name).mkdir()
        value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        save_file({"x": value}, tmp_path / name / "model.safetensors")
    (found,) = compare(tmp_path / "a", tmp_path / "b")
    assert found.text == "equal values, other bits (zeros of another sign, or NaN)"
