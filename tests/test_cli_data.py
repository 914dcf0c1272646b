"""`lladav data`: what is checked, counted and shown of training data, against what the processor really makes."""

import io
import json
import re
import subprocess
import sys

import pytest
import torch
from PIL import Image

import parity
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVProcessor, cli
from transformers_lladav.data import read_examples
from transformers_lladav.data_preview import Span, contact_sheet, prompt_spans
from transformers_lladav.data_report import Bin, DataReport, check_data
from transformers_lladav.media import check_media
from transformers_lladav.prompt_view import Cut, PromptViewer
from transformers_lladav.record_files import printable

IMAGES = parity.FOLDER / "images"


def record(question, answer="Yes.", **fields):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **fields}


RECORDS = [
    record("<image>\nWhat is it?", "A cup.", id="cup", image="a1_landscape.jpg"),
    record("<image><image>Compare.", id="pair", images=["a4_panorama.jpg", "a5_tiny_gray.png"]),
    record("What happens?", id="film", video=["a5_tiny_gray.png"] * 3),
    record("Name a prime.", "7", id="text"),
    record("<image>What?", id="panorama", image="a4_panorama.jpg"),
]
BAD = [
    record("<image>What?", id="cup", image="gone.png"),
    record("What?", " ", id="empty"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Five good records, a line that is no JSON, two bad records and an id that stands twice."""
    path = tmp_path_factory.mktemp("training") / "train.jsonl"
    lines = [json.dumps(line) for line in [*RECORDS, *BAD, record("Hi", id="cup")]]
    path.write_text("\n".join([*lines[:2], "{", *lines[2:]]))
    return path


@pytest.fixture(scope="module")
def bundled():
    return LladaVProcessor.from_pretrained(BUNDLED_CHECKPOINT)


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a command in this process and gives its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["lladav", "data", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())

    return run


# Prompts without pixels


def whole(processor, found, **settings):
    """What the processor makes of an example, pictures decoded."""
    return processor.apply_chat_template(
        found.messages,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        image_separator="\n",
        processor_kwargs=settings,
    ).input_ids[0]


@pytest.mark.parametrize("which", ["processor", "bundled"])
@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_lengths_and_ids_are_those_of_the_processor(number, which, request):
    processor = request.getfixturevalue(which)
    (found,) = read_examples([RECORDS[number]], image_folder=IMAGES)
    view = PromptViewer(processor).view(found.messages, check_media(found.messages))
    expected = whole(processor, found)
    assert view.length == len(expected)
    assert torch.equal(view.input_ids.repeat_interleave(view.widths), expected)


@pytest.mark.parametrize("tiling", ["auto", "tiles", "square"])
@pytest.mark.parametrize("number", [0, 1])
def test_lengths_follow_the_tiling(number, tiling, processor, monkeypatch):
    monkeypatch.setattr(processor.image_processor, "tiling", tiling)
    (found,) = read_examples([RECORDS[number]], image_folder=IMAGES)
    view = PromptViewer(processor).view(found.messages, check_media(found.messages))
    assert view.length == len(whole(processor, found, tiling=tiling))


def test_long_videos_are_counted_as_they_are_sampled(processor):
    (found,) = read_examples([record("Hi", video=[Image.new("RGB", (4, 4))] * 40)])
    view = PromptViewer(processor).view(found.messages, [])
    assert view.widths.max() == 32 * 14 * 15
    (text,) = read_examples([record("Hi")])
    assert PromptViewer(processor).view(text.messages, []).length == view.length - 32 * 14 * 15 - 1  # a line feed


def test_typed_control_tokens_are_text(processor):
    (found,) = read_examples([record("a<|eot_id|>", "b<|mdm_mask|><|startoftext|>")])
    view = PromptViewer(processor).view(found.messages, [])
    assert (view.input_ids == parity.EOT).sum() == 3
    assert torch.equal(view.input_ids, whole(processor, found))


def test_a_cut_says_what_it_loses(processor):
    (found,) = read_examples([RECORDS[1]], image_folder=IMAGES)
    view = PromptViewer(processor).view(found.messages, check_media(found.messages))
    placeholders = (view.input_ids == processor.image_token_id).nonzero().flatten()
    assert view.widths[placeholders].tolist() == [730, 730]
    end = int(view.widths[: placeholders[1] + 1].sum())  # of the second picture
    # The answer begins after the question and its own header: both ends, two tokens of a role, two line feeds.
    answer = int(view.widths[: (view.input_ids == parity.EOT).nonzero()[1] + 1].sum()) + 6
    lengths = (view.length, view.length - 1, answer + 1, answer, end, end - 1)
    assert [view.cut(length) for length in lengths] == [
        None,
        Cut(1, False, False, answer + 1),
        Cut(view.length - answer - 1, False, False, answer + 1),
        Cut(view.length - answer, False, True, answer + 1),
        Cut(view.length - end, False, True, answer + 1),
        Cut(view.length - end + 1, True, True, answer + 1),
    ]


# Reports


def test_a_report_counts_and_names_everything(file, bundled):
    report = check_data(file, bundled, image_folder=IMAGES)
    assert [str(error).split(": ")[0] for error in report.bad] == ["train.jsonl:3", "train.jsonl:7", "train.jsonl:8"]
    assert (report.good, report.records) == (6, 9)
    assert report.kinds == {"text": 2, "one picture": 2, "several pictures": 1, "video": 1}
    assert report.turns == {1: 6}
    assert report.repeated_ids == [("cup", "train.jsonl:9")]
    examples = read_examples(file, image_folder=IMAGES, on_bad=lambda error: None)
    lengths = [len(whole(bundled, found)) for found in examples]
    assert report.lengths.tolist() == lengths
    assert report.longest[0] == max(lengths)


def test_bad_pictures_are_found_as_far_as_asked(tmp_path, bundled):
    (tmp_path / "cut.jpg").write_bytes((IMAGES / "a1_landscape.jpg").read_bytes()[:4000])
    (tmp_path / "no.jpg").write_bytes(b"no")
    records = [record("Hi", image=name) for name in ("cut.jpg", "no.jpg")]
    for decode, expected in ((False, ["record 1"]), (True, ["record 0", "record 1"])):
        report = check_data(records, bundled, image_folder=tmp_path, decode=decode)
        assert [error.source for error in report.bad] == expected


def test_truncation_adds_up(processor):
    records = [record("Hi", "a b c d"), RECORDS[1], RECORDS[0]]
    lengths = check_data(records, processor, image_folder=IMAGES).lengths
    limit = min(lengths) + 1
    cut = check_data(records, processor, image_folder=IMAGES, max_length=limit).truncation
    assert (cut.samples, cut.tokens) == (2, sum(lengths) - min(lengths) - 2 * limit)
    assert cut.through_picture == cut.answerless == ["record 1", "record 2"]


def test_bins_are_of_equal_width_and_hold_every_sample():
    report = DataReport()
    assert report.histogram() == []
    report.lengths.extend([100, 101, 103, 111])
    assert report.histogram() == [
        Bin(100, 100, 1), Bin(101, 101, 1), Bin(102, 102, 0), Bin(103, 103, 1),
        *(Bin(n, n, 0) for n in range(104, 111)), Bin(111, 111, 1),
    ]  # fmt: skip
    report.lengths.append(112)
    assert report.histogram()[0] == Bin(100, 101, 2)
    assert sum(item.samples for item in report.histogram()) == 5


# Preview


def test_spans_show_what_is_learned_and_how_large_pictures_are(processor):
    (found,) = read_examples([RECORDS[1]], image_folder=IMAGES)
    spans = prompt_spans(PromptViewer(processor).view(found.messages, [(80, 640), (29, 41)]), processor)
    picture = Span("<image x 730>", learned=False, placeholder=True)
    assert spans[-5:] == [
        picture,
        Span("\n", learned=False),
        picture,
        Span("\nCompare.", learned=False),
        Span("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>", learned=True),
    ]
    assert spans[0] == Span("<|startoftext|><|start_header_id|>", learned=True)
    text = "".join(span.text for span in spans).replace("<image x 730>", "<image>")
    assert text == processor.apply_chat_template(found.messages, image_separator="\n")


def test_control_characters_are_spelt_out():
    assert printable("a\x1b[31mb\r\n\tc\u202e é") == "a\\x1b[31mb\\r\n\tc\\u202e é"


def test_a_contact_sheet_has_a_cell_per_picture():
    red, blue = Image.new("RGB", (600, 300), (255, 0, 0)), Image.new("RGB", (10, 20), (0, 0, 255))
    found = list(read_examples([record("<image>What?", image=red), record("Hi", video=[blue] * 3), record("Hi")]))
    sheet = contact_sheet(found, columns=4, tile=240)
    gap, cell = 20, 240 + 10 + 17 * 3
    assert sheet.size == (gap + 2 * (240 + gap), gap + cell + gap)
    assert sheet.getpixel((gap + 120, gap + 120)) == (255, 0, 0)
    assert sheet.getpixel((gap + 120, gap + 50)) == (255, 255, 255)  # above a wide picture
    assert sheet.getpixel((gap + 260 + 120, gap + 120)) == (0, 0, 255)
    assert sheet.crop((gap, gap + 250, gap + 240, gap + cell)).getextrema() != ((255, 255),) * 3  # words
    assert contact_sheet(found, columns=1, tile=240).size == (gap + 260, gap + 2 * (cell + gap))
    with pytest.raises(ValueError, match="no picture in 1 examples, so there is nothing to lay out"):
        contact_sheet(found[2:])
    with pytest.raises(ValueError, match="columns=0; pass at least 1"):
        contact_sheet(found, columns=0)


# Commands


def test_check_reports_on_a_screen_and_in_a_file(file, here, tmp_path):
    out_file = tmp_path / "new" / "report.json"
    code, out, err = here("check", file, "--image-folder", IMAGES, "--max-length", 60, "--json", out_file)
    assert code == 1
    shown = [line for line in err.splitlines() if line.startswith(("bad", "warning"))]
    assert [re.match(r"(\w+)  (train.jsonl:\d): ", line).groups() for line in shown] == [
        ("bad", "train.jsonl:3"),
        ("bad", "train.jsonl:7"),
        ("bad", "train.jsonl:8"),
        ("warning", "train.jsonl:9"),
    ]
    report = json.loads(out_file.read_text())
    assert (report["records"], report["good"], len(report["bad"])) == (9, 6, 3)
    assert report["bad"][2] == {
        "source": "train.jsonl:8", "reason": "message 2 (assistant) is an empty answer; give it a text"
    }  # fmt: skip
    assert sum(entry["samples"] for entry in report["tokens"]["histogram"]) == 6
    assert report["truncation"]["max_length"] == 60
    assert f"{file}: 9 records, 6 good, 3 bad" in out
    assert f"Cut at 60: {report['truncation']['samples']} records lose {report['truncation']['tokens']} " in out
    assert f"{report['tokens']['total']:,} tokens with pictures expanded" in out


def test_exit_codes_tell_good_bad_and_unreadable(file, here, tmp_path):
    assert here("check", file, "--image-folder", IMAGES, "--skip-bad")[0] == 0
    good = tmp_path / "good.json"
    good.write_text(json.dumps([RECORDS[3]]))
    assert here("check", good)[0] == 0
    good.write_text(json.dumps([BAD[1]]))
    assert here("check", good)[0] == 1
    code, _, err = here("check", good, "--skip-bad")
    assert (code, f"no record of {good} is left: all 1 are bad" in "".join(err.split("\n"))) == (2, True)
    good.write_text("[")
    code, _, err = here("check", good)
    assert (code, "Error: good.json:1: the file is not JSON" in err) == (2, True)


def test_names_of_files_are_no_markup(here, tmp_path):
    """What stands in square brackets is a style to what prints, and would not be shown."""
    file = tmp_path / "train [new].jsonl"
    file.write_text(json.dumps(RECORDS[3]) + "\n")
    code, out, _ = here("check", file)
    assert (code, f"the longest record is {file.name}:1 with " in out) == (0, True)


def test_many_bad_records_are_capped_on_the_screen_only(here, tmp_path):
    path, out_file = tmp_path / "train.jsonl", tmp_path / "all.json"
    path.write_text("\n".join(["{"] * 50))
    code, _, err = here("check", path)
    assert (code, err.count("bad  train.jsonl:")) == (1, 20)
    assert "... and 30 more bad records; --json FILE writes all" in err
    here("check", path, "--json", out_file)
    assert len(json.loads(out_file.read_text())["bad"]) == 50


@pytest.mark.parametrize("command", ["check", "preview"])
def test_permissions_reach_the_reader(command, here, tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "secret.png")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.csv").write_text("image,answer\n../secret.png,A dot.\n")
    code, _, err = here(command, folder / "a.csv")
    assert (code, "lies outside the folder" in err) == (1 if command == "check" else 2, True)
    assert here(command, folder / "a.csv", "--allow-outside")[0] == 0
    (folder / "a.csv").write_text("image,answer\nhttp://127.0.0.1:9/a.png,A dot.\n")
    assert "URLs are not fetched" in here(command, folder / "a.csv")[2]
    assert "cannot be read as a picture" in here(command, folder / "a.csv", "--allow-urls")[2]
    if command == "preview":
        (folder / "a.csv").write_text("image,answer\n../secret.png,A dot.\n")
        assert "What is that?" in here(command, folder / "a.csv", "--allow-outside", "--question", "What is that?")[1]


def test_preview_shows_prompts_and_saves_the_pictures(file, here, tmp_path):
    sheet = tmp_path / "new" / "sheet.png"
    code, out, err = here("preview", file, "-n", 3, "--image-folder", IMAGES, "--contact-sheet", sheet)
    assert code == 0
    assert [line.split(",")[0] for line in out.splitlines() if line.startswith("train.jsonl:")] == [
        "train.jsonl:1: id cup",
        "train.jsonl:2: id pair",
        "train.jsonl:4: id film",
    ]
    assert "What is it?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«A cup.<|eot_id|>»" in out
    assert "<image x " in out
    assert "<video x " in out
    assert "bad  train.jsonl:3: the line is not JSON" in err
    assert Image.open(sheet).format == "PNG"
    assert here("preview", file, "-n", 1, "--image-folder", IMAGES)[1].count("train.jsonl:") == 1


def test_the_sheet_takes_pictures_as_large_as_the_processor_does(file, here, tmp_path, monkeypatch):
    """And not as large as it does by default, where somebody raised its limit."""
    monkeypatch.setattr("transformers_lladav.data_preview.MAX_IMAGE_PIXELS", 10)
    sheet = tmp_path / "sheet.png"
    assert here("preview", file, "-n", 1, "--image-folder", IMAGES, "--contact-sheet", sheet)[0] == 0
    assert sheet.is_file()


def test_a_record_that_the_recipe_cannot_use_is_named_and_the_next_one_shown(here, tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (RECORDS[3], RECORDS[0])))
    code, out, err = here("preview", file, "--recipe", "stage1", "--image-folder", IMAGES)
    assert (code, out.count("train.jsonl:")) == (0, 1)
    assert "train.jsonl:2: id cup, " in out
    assert 'bad  train.jsonl:1: the question has no picture, and prompt="plain" is for pictures with captions' in err


def test_a_missing_package_is_reported_in_a_line(here, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "a.jsonl").write_text(json.dumps(record("Hi", video="a.mp4")))
    code, _, err = here("check", tmp_path / "a.jsonl")
    assert (code, "video files need PyAV: pip install" in err) == (2, True)


def test_help_comes_without_loading_torch():
    code = (
        "import sys; sys.argv = ['lladav', 'data', '--help']\n"
        "from transformers_lladav import cli\n"
        "try: cli.main()\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout.endswith("False\n")
    assert all(word in run.stdout for word in ("check", "preview"))
