import pytest

from transformers_lladav.files import new_folder, write_text


def test_text_is_written_whole_and_leaves_no_scratch_file(tmp_path):
    target = tmp_path / "deep" / "result.json"
    write_text(target, "first")
    write_text(target, "second")
    assert target.read_text() == "second"
    assert [path.name for path in target.parent.iterdir()] == ["result.json"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "checkpoint"
    with new_folder(target) as scratch:
        (scratch / "weights").write_text("w")
        assert not target.exists()
    assert (target / "weights").read_text() == "w"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_failure_leaves_the_old_folder_and_no_scratch(tmp_path):
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").write_text("kept")

    def fail_half_way():
        with new_folder(target, replace=True) as scratch:
            (scratch / "half").write_text("h")
            raise RuntimeError("disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        fail_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert (target / "old").read_text() == "kept"


def test_a_folder_with_content_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(FileExistsError, match=r"mine exists and is not empty; choose another output folder"):
        new_folder(tmp_path / "mine").__enter__()
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_replacing_removes_what_was_there(tmp_path):
    target = tmp_path / "checkpoint"
    target.mkdir()
    (target / "old").write_text("gone")
    with new_folder(target, replace=True) as scratch:
        (scratch / "new").write_text("here")
    assert [path.name for path in target.iterdir()] == ["new"]
