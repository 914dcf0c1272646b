"""Many records answered: in order, window by window, continued after any end, the same by any number of processes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

import python_process
import transformers_lladav.batch_run as batch_run
from transformers_lladav import asking, predicting
from transformers_lladav.batch_run import BatchOutcome, BatchSettings, part_of, run_batch
from transformers_lladav.eval_asking import Asking
from transformers_lladav.eval_tasks import ReadOptions
from transformers_lladav.record_files import RecordError
from transformers_lladav.shape_scenes import make_scene, render_scene

QUESTIONS = ("How many shapes are there?", "Describe the picture.", "What is at the centre?")
COUNT = 11
# Windows of four records, two batches each.
HOW = Asking({"max_new_tokens": 16, "block_length": 8, "threshold": 0.9}, batch_size=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    records = []
    for number in range(COUNT):
        render_scene(make_scene("test", number), 96).save(folder / f"{number}.png")
        records.append({"id": number, "image": f"{number}.png", "question": QUESTIONS[number % 3]})
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / "records.jsonl"


@pytest.fixture(autouse=True)
def short_windows(monkeypatch):
    monkeypatch.setattr(batch_run, "BATCHES_OF_A_WINDOW", 2)


@pytest.fixture
def settings(data, tmp_path):
    return BatchSettings(data, tmp_path / "out.jsonl", how=HOW, device="cpu")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def expected(data):
    """What the records are answered one by one."""
    assistant = asking.load(device="cpu")
    return [
        asking.ask(assistant, data.parent / record["image"], record["question"], **HOW.generation).text
        for record in read(data)
    ]


def test_every_record_has_its_answer_in_the_order_of_the_file(settings, data, expected):
    told = []
    assert run_batch(settings, lambda done, total: told.append((done, total))) == BatchOutcome(COUNT, 0, 0)
    assert read(settings.output) == [
        {**record, "prediction": answer} for record, answer in zip(read(data), expected, strict=True)
    ]
    assert told == [(0, COUNT), (4, COUNT), (8, COUNT), (COUNT, COUNT)]
    assert not settings.parts.exists()
    assert [path.name for path in settings.output.parent.iterdir()] == ["out.jsonl"]


def test_a_run_that_died_goes_on(settings, expected, monkeypatch):
    calls, write = [], predicting.write

    def die(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return write(*args)

    monkeypatch.setattr(predicting, "write", die)
    with pytest.raises(KeyboardInterrupt):
        run_batch(settings)
    assert not settings.output.exists()
    assert part_of(settings, 0).is_file()
    assert not part_of(settings, 4).exists()
    calls.clear()
    monkeypatch.setattr(predicting, "write", lambda *args: calls.append(args) or write(*args))
    assert run_batch(settings) == BatchOutcome(COUNT, 0, 4)
    assert len(calls) == 4  # two windows of four and three, in batches of two
    assert [record["prediction"] for record in read(settings.output)] == expected


BEFORE = """
import os, signal
import transformers_lladav.batch_run as module
module.BATCHES_OF_A_WINDOW = 2
replace = os.replace
def die(old, new):
    replace(old, new)
    if str(new).endswith("000000000004.jsonl"):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = die
"""


def test_kill_9(settings, data, expected):
    arguments = ["batch", str(data), str(settings.output), "--batch-size", "2", "--device", "cpu"]
    arguments += [part for name, value in HOW.generation.items() for part in ("--set", f"{name}={value}")]
    script = f"import sys\n{BEFORE}\nfrom transformers_lladav.cli import main\nsys.argv[1:] = {arguments!r}\nmain()\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = python_process.run(["-c", script], env=environment)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert sorted(path.name for path in settings.parts.glob("*.jsonl")) == ["000000000000.jsonl", "000000000004.jsonl"]
    assert run_batch(settings).earlier == 8
    assert [record["prediction"] for record in read(settings.output)] == expected


def test_a_window_that_another_process_wrote_elsewhere(settings, monkeypatch):
    class Alone(batch_run.Processes):
        """One of two, whose neighbour writes to another disk."""

        def __init__(self):
            self.rank, self.count = 0, 2

        def wait(self):
            pass

        def together(self):
            return batch_run.ExitStack()

    monkeypatch.setattr(batch_run, "Processes", Alone)
    with pytest.raises(ValueError, match=r"holds no 000000000004\.jsonl; all processes must write to the same disk"):
        run_batch(settings)
    assert part_of(settings, 0).is_file()
    assert not settings.output.exists()


def test_torchrun(settings, data, expected):
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "transformers_lladav"]
    arguments += ["batch", str(data), str(settings.output), "--batch-size", "1", "--device", "cpu"]
    arguments += [part for name, value in HOW.generation.items() for part in ("--set", f"{name}={value}")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert f"{COUNT} records. Written to" in run.stdout
    assert [record["prediction"] for record in read(settings.output)] == expected


def test_sampling_does_not_depend_on_batches(settings, tmp_path):
    sampled = replace(HOW, generation={**HOW.generation, "temperature": 1.0}, seed=3)
    found = []
    for size in (1, 4):
        each = replace(settings, how=replace(sampled, batch_size=size), output=tmp_path / f"{size}.jsonl")
        run_batch(each)
        found.append(read(each.output))
    assert found[0] == found[1]


# Bad input


@pytest.fixture
def with_a_bad_record(data, tmp_path):
    lines = data.read_text().splitlines()
    lines[5] = '{"image": "none.png", "question": "What?"}'
    lines[7] = "{half"
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_bad_record_stops_the_run_which_goes_on_once_it_is_mended(settings, data, with_a_bad_record, expected):
    options = {"read": ReadOptions(image_folder=data.parent)}
    with pytest.raises(RecordError, match=r"bad\.jsonl:6: .*none\.png"):
        run_batch(replace(settings, source=with_a_bad_record, **options))
    assert not settings.output.exists()


def test_bad_records_are_told_where_they_are_skipped(settings, data, with_a_bad_record, expected):
    options = {"read": ReadOptions(image_folder=data.parent), "skip_bad": True}
    outcome = run_batch(replace(settings, source=with_a_bad_record, **options))
    assert outcome == BatchOutcome(COUNT, 2, 0)
    records = read(settings.output)
    bad = {number: records.pop(number) for number in (7, 5)}
    assert "none.png" in bad[5]["error"]
    assert (bad[5]["image"], "prediction" in bad[5]) == ("none.png", False)
    assert bad[7]["source"].endswith("bad.jsonl:8")
    assert "error" in bad[7]
    good = [answer for number, answer in enumerate(expected) if number not in (5, 7)]
    assert [record["prediction"] for record in records] == good


def test_a_record_with_a_column_of_that_name_is_bad_and_what_stood_there_is_no_answer(settings, data, tmp_path):
    first, second, *_ = data.read_text().splitlines()
    path = tmp_path / "again.jsonl"
    path.write_text(f'{first[:-1]}, "prediction": "of another model"}}\n{second}\n')
    options = {"read": ReadOptions(image_folder=data.parent), "skip_bad": True}
    assert run_batch(replace(settings, source=path, **options)) == BatchOutcome(2, 1, 0)
    bad, good = read(settings.output)
    assert "the record has 'prediction' already ('of another model')" in bad["error"]
    assert ("prediction" in bad, "error" in good, bad["id"]) == (False, False, 0)


def test_half_a_character_in_a_record_comes_back_as_it_was(settings, data, tmp_path):
    first, second, *_ = data.read_text().splitlines()
    path = tmp_path / "halves.jsonl"
    path.write_text(f'{first[:-1]}, "note": "\\ud83d é"}}\n{second.replace("Describe", chr(92) + "ud83d Describe")}\n')
    options = {"read": ReadOptions(image_folder=data.parent), "skip_bad": True}
    assert run_batch(replace(settings, source=path, **options)) == BatchOutcome(2, 1, 0)
    good, bad = read(settings.output)
    assert good["note"] == "\ud83d é"
    assert bad["question"].startswith("\ud83d Describe")
    assert "half of a character" in bad["error"]


def test_an_output_that_is_there_is_not_touched(settings):
    settings.output.write_text("mine")
    with pytest.raises(FileExistsError, match=r"out\.jsonl is there already; choose another output or remove it"):
        run_batch(settings)
    assert settings.output.read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"how": replace(HOW, preset="fast")}, 'preset was null and is "fast"'),
        ({"how": replace(HOW, batch_size=1)}, "window was 4 and is 2"),
        ({"column": "answer"}, 'column was "prediction" and is "answer"'),
    ],
)
def test_parts_of_another_run_are_not_taken_up(settings, change, message, monkeypatch):
    monkeypatch.setattr(predicting, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_batch(settings)
    with pytest.raises(ValueError, match=message):
        run_batch(replace(settings, **change))


def test_records_that_changed_are_another_run(settings, data, monkeypatch, tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_text(data.read_text())
    mine = replace(settings, source=copy, read=ReadOptions(image_folder=data.parent))
    monkeypatch.setattr(predicting, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_batch(mine)
    copy.write_text(data.read_text().replace("Describe", "Explain"))
    with pytest.raises(ValueError, match=r"records\.digest was"):
        run_batch(mine)


@pytest.mark.parametrize("name", ["metadata.csv", "0.txt"])
def test_records_of_a_folder_that_changed_are_another_run(settings, data, monkeypatch, tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "0.png").write_bytes((data.parent / "0.png").read_bytes())
    text = "image,question,answer\n0.png,What is it?,x\n" if name == "metadata.csv" else "What is it?"
    (folder / name).write_text(text)
    mine = replace(settings, source=folder)
    monkeypatch.setattr(predicting, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_batch(mine)
    (folder / name).write_text(text.replace("What", "Who"))
    with pytest.raises(ValueError, match=r"records\.digest was"):
        run_batch(mine)


def test_a_run_whose_output_lies_beside_its_records_goes_on(data, monkeypatch, tmp_path):
    for number in (0, 1):
        (tmp_path / f"{number}.png").write_bytes((data.parent / f"{number}.png").read_bytes())
        (tmp_path / f"{number}.txt").write_text("a star")
    mine = BatchSettings(tmp_path, tmp_path / "out.jsonl", how=replace(HOW, batch_size=1), device="cpu")
    monkeypatch.setattr(batch_run, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_batch(mine)
    monkeypatch.undo()
    monkeypatch.setattr(batch_run, "BATCHES_OF_A_WINDOW", 2)
    assert run_batch(mine) == BatchOutcome(2, 0, 2)


def test_one_run_at_a_time(settings, monkeypatch):
    def again(*_):
        with pytest.raises(ValueError, match="another run writes to"):
            run_batch(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(predicting, "write", again)
    with pytest.raises(KeyboardInterrupt):
        run_batch(settings)


def test_an_output_that_another_run_wrote_meanwhile_is_not_replaced(settings, monkeypatch):
    load = asking.load

    def slow(*arguments):
        settings.output.write_text("theirs")
        return load(*arguments)

    monkeypatch.setattr(asking, "load", slow)
    with pytest.raises(FileExistsError, match=r"out\.jsonl is there already"):
        run_batch(settings)
    assert settings.output.read_text() == "theirs"


@pytest.mark.parametrize("left", [5, 1], ids=["all of it", "one part"])
def test_parts_of_a_run_killed_while_it_removed_them_go_with_the_next_command(settings, monkeypatch, left):
    monkeypatch.setattr(batch_run, "_remove", lambda parts: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_batch(settings)
    monkeypatch.undo()
    names = ["settings.json", "000000000000.jsonl", "000000000004.jsonl", "000000000008.jsonl"]
    assert sorted(path.name for path in settings.parts.iterdir()) == sorted(names)
    for name in names[: 4 - left] if left < 4 else ():
        (settings.parts / name).unlink()
    with pytest.raises(FileExistsError, match=r"out\.jsonl is there already"):
        run_batch(settings)
    assert [path.name for path in settings.output.parent.iterdir()] == ["out.jsonl"]


def test_parts_of_a_run_that_has_not_ended_stay_beside_an_output_that_is_not_its_own(settings, monkeypatch):
    monkeypatch.setattr(batch_run, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_batch(settings)
    settings.output.write_text("mine")
    with pytest.raises(FileExistsError, match=r"out\.jsonl is there already"):
        run_batch(settings)
    assert part_of(settings, 0).is_file()


def test_parts_whose_settings_are_gone_are_not_taken_up(settings, expected):
    settings.parts.mkdir()
    part_of(settings, 0).write_text(
        '{"prediction": "of another run that was killed while it removed its parts"}\n' * 4
    )
    assert run_batch(settings).earlier == 0
    assert [record["prediction"] for record in read(settings.output)] == expected


@pytest.mark.parametrize(
    ("content", "reason"), [('{"id": 0}\n', "1 of 4 records"), ('{"id": 0}\n{"i', "Unterminated")]
)
def test_a_damaged_part_is_named_and_answered_again_once_it_is_removed(
    settings, expected, content, reason, monkeypatch
):
    monkeypatch.setattr(batch_run, "_join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_batch(settings)
    monkeypatch.undo()
    monkeypatch.setattr(batch_run, "BATCHES_OF_A_WINDOW", 2)
    part_of(settings, 4).write_text(content)
    with pytest.raises(ValueError, match=rf"000000000004\.jsonl is damaged \({reason}.*; remove it and repeat"):
        run_batch(settings)
    assert not settings.output.exists()
    part_of(settings, 4).unlink()
    assert run_batch(settings).earlier == COUNT - 4
    assert [record["prediction"] for record in read(settings.output)] == expected


def test_a_model_that_is_not_there(settings):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub id"):
        run_batch(replace(settings, model="./none/of/these"))
