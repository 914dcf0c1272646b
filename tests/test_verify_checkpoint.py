"""The verifier's command line prints and writes all findings, and its exit code says what came of it."""

import hashlib
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import parity
import verify_checkpoint
from transformers_lladav import BUNDLED_CHECKPOINT
from transformers_lladav.verification import digest


def test_a_good_folder_against_the_one_it_was_made_from(converted_folder, capsys):
    assert verify_checkpoint.main([str(converted_folder), "--against", str(parity.OFFICIAL), "--strict"]) == 0
    shown = capsys.readouterr().out
    assert "all 88 tensors have the same bytes" in shown
    assert "ERROR" not in shown
    assert "warning" not in shown


def test_a_difference_is_exit_code_1(converted_folder, tmp_path, capsys):
    other = shutil.copytree(converted_folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.image_newline"][0] += 4
    save_file(tensors, other / "model.safetensors")
    assert verify_checkpoint.main([str(converted_folder), "--against", str(other)]) == 1
    shown = capsys.readouterr().out
    assert "1 of 88 tensors differ" in shown
    assert "DIFFERS model.image_newline: largest difference 4" in shown


def test_warnings_count_with_strict_only(capsys):
    assert verify_checkpoint.main([str(BUNDLED_CHECKPOINT)]) == 0
    assert verify_checkpoint.main([str(BUNDLED_CHECKPOINT), "--strict"]) == 1
    assert "warning code: no code files" in capsys.readouterr().out


def test_digests_are_printed_and_written(tmp_path, capsys):
    file = tmp_path / "report.json"
    assert verify_checkpoint.main([str(BUNDLED_CHECKPOINT), "--tensors", "--json", str(file)]) == 0
    shown, document = capsys.readouterr().out, json.loads(file.read_text())
    tensors = load_file(BUNDLED_CHECKPOINT / "model.safetensors")
    assert document["tensors"] == {name: digest(tensor) for name, tensor in tensors.items()}
    assert all(f"{sha}  {name}" in shown for name, sha in document["tensors"].items())
    lines = "".join(f"{document['tensors'][name]}  {name}\n" for name in sorted(tensors))
    assert document["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert document["sha256"] in shown
    assert (document["errors"], document["warnings"], document["layout"]) == (0, 2, "native")


@pytest.mark.parametrize("arguments", [["nowhere"], [str(BUNDLED_CHECKPOINT), "--against", "nowhere"]])
def test_what_cannot_be_checked_is_exit_code_2(arguments, capsys):
    assert verify_checkpoint.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error:")


def test_help_names_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        verify_checkpoint.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Exit code 0: nothing wrong" in shown
    for option in ("--against", "--json", "--strict", "--tensors", "--vision-config"):
        assert option in shown


def test_names_of_tensors_are_printed_as_they_are(tmp_path, capsys):
    other = shutil.copytree(BUNDLED_CHECKPOINT, tmp_path / "[red]other")
    tensors = load_file(other / "model.safetensors")
    names = ["x[/bold]y", "[red]z"]
    more = {name: tensors["model.image_newline"].clone() for name in names}
    save_file({**tensors, **more}, other / "model.safetensors")
    assert verify_checkpoint.main([str(other), "--tensors"]) == 1
    shown = capsys.readouterr().out
    assert all(f"  {digest(tensors['model.image_newline'])}  {name}\n" in shown for name in names)
    assert verify_checkpoint.main([str(BUNDLED_CHECKPOINT), "--against", str(other)]) == 1
    shown = capsys.readouterr().out
    assert all(f"  DIFFERS {name}: only in {other}\n" in shown for name in names)


def test_a_report_that_cannot_be_written_is_not_taken_for_a_folder_that_is_wrong(capsys):
    # /proc takes no folders, whoever asks.
    assert verify_checkpoint.main([str(BUNDLED_CHECKPOINT), "--json", "/proc/lladav/report.json"]) == 2
    assert "error:" in capsys.readouterr().err
