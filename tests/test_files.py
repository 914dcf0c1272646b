"""A file or folder is whole or not there, whatever kills, fills or races: the old one or the new one stays."""

import errno
import os
import shutil

import pytest
from PIL import Image

from transformers_lladav.files import (
    LOCK,
    check_space,
    content_of,
    held,
    naming_full_disk,
    new_folder,
    save_picture,
    write_file,
    write_text,
)


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
    abandoned = tmp_path / ".check[1]point.0123abcd.part"
    abandoned.mkdir()
    (tmp_path / ".check[1]point.0123abcd.lock").touch()
    (abandoned / "half").write_text("h")
    elsewhere = tmp_path / ".check[1]point.v2.0123abcd.part"
    elsewhere.mkdir()
    (tmp_path / ".check[1]point.v2.0123abcd.lock").touch()
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
    others = [".check[1]point.v2.0123abcd.lock", ".check[1]point.v2.0123abcd.part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*others, "check[1]point"]
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


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_run_killed_while_it_replaces_a_folder_leaves_the_old_one_or_the_new_one(tmp_path, moves):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "weights").write_text("old")
    child = os.fork()
    if not child:  # a process of its own, whose lock goes with it
        replace, made = os.replace, []

        def die(old, new):
            if len(made) == moves:
                os._exit(9)
            made.append(new)
            replace(old, new)
            if len(made) == 2:
                os._exit(9)  # both moves are done, and the old folder is still there

        os.replace = die
        with new_folder(target, replace=True) as scratch:
            (scratch / "weights").write_text("new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    expected = "new" if moves == 2 else "old"
    with pytest.raises(FileExistsError, match="adapter exists and is not empty"):
        new_folder(target).__enter__()
    assert (target / "weights").read_text() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_old_folder_stays_where_it_cannot_be_put_back(tmp_path, monkeypatch):
    """A run was killed after it had set the old folder aside, which is all that there is of it."""
    aside = tmp_path / ".adapter.0123abcd.old"
    aside.mkdir()
    (aside / "weights").write_text("old")
    (tmp_path / ".adapter.0123abcd.lock").touch()
    replace, refused = os.replace, []

    def refuse_once(old, new):
        if not refused:
            refused.append(old)
            raise PermissionError("not now")
        replace(old, new)

    def fail():
        with new_folder(tmp_path / "adapter"):
            raise RuntimeError("disk is full")

    monkeypatch.setattr(os, "replace", refuse_once)
    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert (aside / "weights").read_text() == "old"
    assert refused == [aside]
    with pytest.raises(FileExistsError, match="adapter exists and is not empty"):
        new_folder(tmp_path / "adapter").__enter__()
    assert (tmp_path / "adapter" / "weights").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_disk_that_is_full_leaves_the_old_file_and_is_named(tmp_path):
    target = tmp_path / "result.json"
    write_text(target, "old")

    def fill(scratch):
        scratch.write_text("hal")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"result\.json could not be written \(No space left on device\); make room"):
        write_file(target, fill)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(PermissionError, match="mine"), naming_full_disk(target):
        raise PermissionError("mine")


def test_what_a_killed_run_leaves_in_its_folder_is_no_content(tmp_path):
    for name in (LOCK, ".run.json.part", "thesis.part", ".thesis"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in content_of(tmp_path)) == [".thesis", "thesis.part"]


def test_a_folder_is_held_by_one_run(tmp_path):
    folder = tmp_path / "new" / "run"
    with held(folder, "evaluation"):
        with pytest.raises(
            ValueError, match=r"another evaluation writes to .*run at this moment; wait for it or stop"
        ):
            held(folder, "evaluation").__enter__()
        assert (folder / LOCK).exists()
    assert list(folder.iterdir()) == []
    with held(folder):
        pass


def test_a_picture_is_saved_whole_in_the_kind_its_name_says(tmp_path):
    picture = Image.new("RGB", (3, 2), (9, 8, 7))
    save_picture(picture, tmp_path / "deep" / "a.PNG")
    save_picture(picture, tmp_path / "b", "PNG")
    for path in (tmp_path / "deep" / "a.PNG", tmp_path / "b"):
        assert Image.open(path).getpixel((0, 0)) == (9, 8, 7)
    with pytest.raises(ValueError, match=r"c\.xyz ends in nothing that says .* call it c\.xyz\.png"):
        save_picture(picture, tmp_path / "c.xyz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "deep"]
