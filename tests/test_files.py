import shutil

import pytest

from transformers_lladav.files import LOCK, check_space, new_folder, write_text


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


def test_a_failure_removes_the_parent_folders_it_made_and_no_others(tmp_path):
    (tmp_path / "there").mkdir()

    def fail():
        with new_folder(tmp_path / "there" / "new" / "newer" / "checkpoint"):
            raise RuntimeError("disk is full")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []


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


def test_what_a_killed_run_left_is_removed_and_what_another_run_writes_is_not(tmp_path):
    target = tmp_path / "check[1]point"
    abandoned = tmp_path / ".check[1]point.abc.part"
    abandoned.mkdir()
    (abandoned / LOCK).touch()
    (abandoned / "half").write_text("h")
    elsewhere = tmp_path / ".other.abc.part"
    elsewhere.mkdir()
    (elsewhere / LOCK).touch()
    with new_folder(target) as first:
        assert not abandoned.exists()
        (first / "weights").write_text("first")
        with new_folder(target) as second:
            assert first.exists()
            assert first != second
            (second / "weights").write_text("second")
        # The other run was quicker; its folder stays.
        with pytest.raises(FileExistsError, match="exists and is not empty"), new_folder(target):
            pass
        shutil.rmtree(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.abc.part", "check[1]point"]
    assert (target / "weights").read_text() == "first"


def test_a_folder_that_another_run_finished_meanwhile_is_kept(tmp_path):
    target = tmp_path / "checkpoint"

    def finish_late():
        with new_folder(target) as scratch:
            (scratch / "weights").write_text("late")
            target.mkdir()
            (target / "weights").write_text("early")

    with pytest.raises(FileExistsError, match="exists and is not empty"):
        finish_late()
    assert (target / "weights").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_disk_too_small_is_told_with_both_figures(tmp_path, monkeypatch):
    asked = []

    def usage(path):
        asked.append(path)
        return shutil._ntuple_diskusage(10**12, 10**12 - 2 * 10**9, 2 * 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    check_space(tmp_path / "not" / "yet", 2 * 10**9)
    with pytest.raises(OSError, match=r"needs 2\.50 GB, but its disk has 2\.00 GB free; nothing was written"):
        check_space(tmp_path / "not" / "yet", 2_500_000_000)
    assert asked == [tmp_path, tmp_path]
