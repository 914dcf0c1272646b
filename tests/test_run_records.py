"""What a run was told before and is told now differs in the settings that are named, and damage is told."""

import pytest

from transformers_lladav.run_records import differences, read_record


def test_differences_are_named_with_both_values_however_deep():
    earlier = {"a": 1, "same": [1, {"b": 2}], "deep": {"x": {"y": 1, "z": 2}}, "gone": "old"}
    now = {"a": 2, "same": [1, {"b": 2}], "deep": {"x": {"y": 1, "z": 3}}, "new": True}
    assert list(differences(earlier, now)) == [
        "a was 1 and is 2",
        "deep.x.z was 2 and is 3",
        'gone was "old" and is null',
        "new was null and is true",
    ]
    assert list(differences(now, now)) == []


def test_a_record_that_became_something_else_is_told_as_a_whole():
    assert list(differences({"lora": {"rank": 4}}, {"lora": None})) == ['lora was {"rank": 4} and is null']


@pytest.mark.parametrize(("content", "reason"), [("{half", "cannot be read"), ("[1]", "holds no record of a run")])
def test_a_record_that_somebody_damaged_is_named(tmp_path, content, reason):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"run\.json {reason}.*; choose another output, or remove .*"):
        read_record(path)
    path.write_text('{"seed": 1}')
    assert read_record(path) == {"seed": 1}
