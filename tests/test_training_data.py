"""Data of a run: where they come from, what is held out, and streams that are the same for any number of readers."""

import itertools
import json
import pickle
import re
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

import parity
from transformers_lladav.data import Examples
from transformers_lladav.record_files import DataError, RecordError
from transformers_lladav.records import Example
from transformers_lladav.streams import Stream
from transformers_lladav.training_data import hold_out, open_data

IMAGES = parity.FOLDER / "images"
RECORDS = [{"id": f"r{number}", "question": f"What is {number}?", "answer": str(number)} for number in range(10)]
BROKEN = {"messages": [{"role": "user", "content": "Hi"}]}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def refused(sentence, error=DataError):
    return pytest.raises(error, match=re.escape(sentence))


def answers(examples):
    return [example.messages[-1]["content"][0]["text"] for example in examples]


# Opening


def test_a_file_and_a_folder_are_opened(tmp_path):
    told = []
    file = write(tmp_path / "metadata.jsonl", [*RECORDS, BROKEN])
    opened = open_data(file, skip_bad=True, on_progress=lambda *at: told.append(at))
    assert isinstance(opened, Examples)
    assert answers(opened) == [str(number) for number in range(10)]
    assert [error.source for error in opened.skipped] == ["metadata.jsonl:11"]
    assert told[-1] == (11, 11)
    assert answers(open_data(str(tmp_path), skip_bad=True)) == answers(opened)
    with pytest.raises(RecordError, match=r"^metadata\.jsonl:11: "):
        open_data(file)


def test_options_of_reading_are_passed_on(tmp_path):
    file = write(tmp_path / "train.jsonl", [{"image": "a5_tiny_gray.png", "answer": "A dot."}])
    for stream in (False, True):
        options = {"stream": stream, "question": "And?"}
        first = next(iter(open_data(file, image_folder=IMAGES, **options)))
        assert first.messages[0]["content"][-1] == {"type": "text", "text": "And?"}
        with refused("there is no"):
            open_data(file, **options)
        outside = write(tmp_path / "outside.jsonl", [{"image": str(IMAGES / "a5_tiny_gray.png"), "answer": "A dot."}])
        with refused("outside"):
            open_data(outside, **options)
        assert next(iter(open_data(outside, allow_outside=True, **options)))
        url = write(tmp_path / "url.jsonl", [{"image": "http://127.0.0.1:9/a.png", "answer": "A dot."}])
        with refused("URLs are not fetched"):
            open_data(url, **options)
        with refused("cannot be read as a picture"):
            open_data(url, allow_urls=True, **options)
        with refused("more than max_image_pixels=8"):
            open_data(file, image_folder=IMAGES, max_image_pixels=8, **options)


def test_no_good_record_is_an_error_with_the_first_reasons(tmp_path):
    file = write(tmp_path / "train.jsonl", [BROKEN] * 5)
    reason = "the record has no assistant message to learn from; add an answer"
    named = "; ".join(f"train.jsonl:{line}: {reason}" for line in (1, 2, 3)) + " (and 2 more)"
    for stream in (False, True):
        with refused(f"no record is left: all 5 are bad; the first: {named}"):
            open_data(file, stream=stream, skip_bad=True)


@pytest.mark.parametrize("source", ["no/such/file", "data/train.jsonl", "./mine", "train.csv", "a b/c", "/nowhere"])
def test_what_is_no_path_and_no_name_of_a_data_set_is_refused(source):
    with refused(
        f"there is no file or folder {source!r}; give a path that exists, or a data set of the Hub as owner/"
    ):
        open_data(source)


def test_settings_of_a_stream_are_for_streams(tmp_path):
    file = write(tmp_path / "train.jsonl", RECORDS)
    with refused("block=4 and shuffle_buffer=0 are for streams; pass stream=True", ValueError):
        open_data(file, block=4)
    stream = open_data(file, stream=True, block=4, shuffle_buffer=3, seed=5)
    assert (stream.block, stream.shuffle_buffer, stream.seed) == (4, 3, 5)


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the datasets library; returns the calls, and takes what to answer."""
    module = types.ModuleType("datasets")
    module.__version__, module.answer, module.calls = "4.1.0", RECORDS, []

    def load_dataset(*args, **options):
        module.calls.append((args, options))
        if isinstance(module.answer, Exception):
            raise module.answer
        return module.answer

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_a_data_set_of_the_hub_is_asked_for_by_name_and_split(hub):
    opened = open_data("owner/name")
    assert hub.calls == [(("owner/name",), {"split": "train", "streaming": False})]
    assert answers(opened) == [str(number) for number in range(10)]
    assert opened[3].source == "owner/name:train record 3"
    stream = open_data("some.owner/name-2:validation[:10%]", stream=True)
    assert hub.calls[1:] == [(("some.owner/name-2",), {"split": "validation[:10%]", "streaming": True})]
    assert next(iter(stream)).source == "some.owner/name-2:validation[:10%] record 0"


def test_a_path_that_exists_wins(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "name", RECORDS[:2])
    assert len(open_data("owner/name")) == 2
    assert not hub.calls


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError("404"), "there is no file or folder 'owner/name', and no data set 'owner/name' on the Hub"),
        (
            ConnectionError("offline"),
            "there is no file or folder 'owner/name', and the Hub cannot be asked for a data",
        ),
        (
            ValueError('Unknown split "train"'),
            "the data set 'owner/name' of the Hub cannot be opened with split 'train'",
        ),
        (RuntimeError("Dataset scripts are no longer supported"), "opened with split 'train': Dataset scripts are no"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_hub_does_not_give_is_explained(hub, error, message):
    hub.answer = error
    with refused(message):
        open_data("owner/name")


def test_the_datasets_library_is_asked_for_when_it_is_missing_or_runs_code(hub, monkeypatch):
    message = (
        "there is no file or folder 'owner/name', and a data set of the Hub needs the datasets library, 4.0 or later: "
        "pip install 'transformers_lladav[data]'"
    )
    hub.__version__ = "3.6.0"
    with refused(message, ImportError):
        open_data("owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with refused(message, ImportError):
        open_data("owner/name")
    assert not hub.calls


# Held-out examples


def example(number, pictures=(), videos=(), text="Hi"):
    parts = [{"type": "image", "image": picture} for picture in pictures]
    parts += [{"type": "video", "video": video} for video in videos]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    return Example(str(number), messages, f"train.jsonl:{number}")


def ids(examples):
    return [int(one.id) for one in examples]


def shown(examples):
    return {picture for one in examples for picture in one.pictures}


pictures_of_examples = st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=3), min_size=2, max_size=40)


@given(pictures_of_examples, st.integers(1, 39), st.integers(0, 5))
def test_no_picture_is_on_both_sides_and_nothing_is_lost(pictures, count, seed):
    examples = [example(number, map(str, sorted(own))) for number, own in enumerate(pictures)]
    count = min(count, len(examples) - 1)
    reached, rest = set(pictures[0]), pictures[1:]
    while near := [own for own in rest if own & reached]:
        reached, rest = reached.union(*near), [own for own in rest if not own & reached]
    if not rest:  # everything hangs together
        with refused("none can be held out", ValueError):
            hold_out(examples, count=count, seed=seed)
        return
    train, held = hold_out(examples, count=count, seed=seed)
    assert train
    assert held
    assert sorted(ids(train) + ids(held)) == list(range(len(examples)))
    assert ids(train) == sorted(ids(train))
    assert ids(held) == sorted(ids(held))
    assert not shown(train) & shown(held)


@given(st.integers(2, 60), st.integers(0, 5), st.data())
def test_exactly_as_many_are_held_out_as_asked_for_where_nothing_hangs_together(size, seed, data):
    count = data.draw(st.integers(1, size - 1))
    examples = [example(number, [f"{number}.png"]) for number in range(size)]
    train, held = hold_out(examples, count=count, seed=seed)
    assert (len(train), len(held)) == (size - count, count)


def test_the_draw_depends_on_the_seed_only():
    examples = [example(number, [f"{number // 2}.png"]) for number in range(100)]
    first, other = (ids(hold_out(examples, share=0.2, seed=seed)[1]) for seed in (0, 1))
    assert ids(hold_out(examples, count=20, seed=0)[1]) == first != other
    assert len(first) == len(other) == 20


def test_a_smallest_group_that_is_larger_than_asked_for_is_held_out_whole():
    examples = [example(number, ["a.png" if number < 6 else "b.png"]) for number in range(10)]
    train, held = hold_out(examples, count=1)
    assert (ids(train), ids(held)) == (list(range(6)), [6, 7, 8, 9])


def test_frames_and_pixels_and_texts_keep_examples_together():
    red, also_red, blue = (Image.new("RGB", (2, 2), colour) for colour in ("red", "red", "blue"))
    together = [
        [example(0, [red]), example(1, [also_red])],
        [example(2, [blue])],
        [example(3, videos=[["a/1.png", "a/2.png"]]), example(4, ["a/2.png"])],
        [example(5, videos=["film.mp4"]), example(6, videos=["film.mp4"])],
        [example(7, text="One?"), example(8, text="One?")],
        [example(9, text="Two?")],
    ]
    examples = [one for group in together for one in group]
    sides = {frozenset(ids(group)) for group in together}
    for seed in range(20):
        held = set(ids(hold_out(examples, count=4, seed=seed)[1]))
        assert len(held) in (3, 4)
        assert all(group <= held or not group & held for group in sides)


def test_both_sides_can_be_pickled_and_sliced(tmp_path):
    examples = Examples(write(tmp_path / "train.jsonl", RECORDS))
    told = []
    train, held = hold_out(examples, count=3, on_progress=lambda *at: told.append(at))
    assert told == [(number, 10) for number in range(1, 11)]
    copies = pickle.loads(pickle.dumps((train, held)))
    assert [one.id for half in copies for one in half] == [one.id for half in (train, held) for one in half]
    assert [one.id for one in train[1:3]] == [train[1].id, train[2].id]
    assert train[-1].id == list(train)[-1].id
    with pytest.raises(IndexError):
        train[7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "share=None and count=None were given; give one of them"),
        ({"share": 0.5, "count": 1}, "share=0.5 and count=1 were given; give one of them"),
        ({"share": 1.0}, "share=1.0; it is a part of the examples: pass more than 0 and less than 1"),
        ({"share": 0.0}, "share=0.0; it is a part of the examples: pass more than 0 and less than 1"),
        ({"share": 0.01}, "share=0.01 of 10 examples holds out 0; pass more (--hold-out)"),
        ({"count": 0}, "count=0 of 10 examples holds out 0; pass count=1 or more"),
        ({"share": 0.99}, "share=0.99 of 10 examples holds out 10, which leaves 0 to train on; pass less"),
        ({"count": 12}, "count=12 of 10 examples holds out 12, which leaves 0 to train on; pass less"),
    ],
)
def test_neither_side_may_be_empty(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        hold_out([example(number, [f"{number}.png"]) for number in range(10)], **options)


def test_examples_of_one_picture_cannot_be_split():
    with refused("all 10 examples hang together by the pictures they show, so that none can be", ValueError):
        hold_out([example(number, ["a.png"]) for number in range(10)], count=2)


# Streams


def marks(samples):
    return [(sample.epoch, sample.index) for sample in samples]


def first(stream, count):
    return marks(itertools.islice(stream, count))


def test_a_stream_goes_over_the_data_again_and_again():
    stream = Stream(RECORDS)
    assert first(stream, 25) == [(place // 10, place % 10) for place in range(25)]
    stream.set_epoch(4)
    assert stream.epoch == 4
    assert first(stream, 12) == [(4 + place // 10, place % 10) for place in range(12)]
    sample = next(iter(stream))
    assert sample.source == "record 0"
    assert sample.messages[-1]["content"] == [{"type": "text", "text": "0"}]


@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 5))
def test_a_buffer_gives_every_sample_once_an_epoch_and_holds_no_more(count, buffer, seed):
    stream = Stream((RECORDS * 3)[:count], shuffle_buffer=buffer, seed=seed)
    drawn = first(stream, 3 * count)
    assert first(stream, 3 * count) == drawn
    for epoch in range(3):
        order = drawn[epoch * count : (epoch + 1) * count]
        assert sorted(order) == [(epoch, index) for index in range(count)]
        # What comes at a place was read by then: that many before it, and the buffer.
        assert all(index <= place + buffer for place, (_, index) in enumerate(order))
    stream.set_epoch(1)
    assert first(stream, 2 * count) == drawn[count:]


def test_orders_of_a_buffer_differ_by_epoch_and_seed():
    records = RECORDS * 3
    drawn = first(Stream(records, shuffle_buffer=8, seed=1), 60)
    zeroth, later = ([index for _, index in drawn[start : start + 30]] for start in (0, 30))
    assert zeroth != later != sorted(later)
    assert first(Stream(records, shuffle_buffer=8, seed=2), 30) != drawn[:30]


@pytest.mark.parametrize("buffer", [0, 4])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_global_batches_do_not_depend_on_processes_and_workers(processes, workers, buffer):
    accelerate = pytest.importorskip("accelerate")
    size, steps = 2, 8
    expected = first(Stream(RECORDS, shuffle_buffer=buffer), size * processes * steps)
    for process in range(processes):
        stream = Stream(RECORDS, block=size * processes, shuffle_buffer=buffer)
        loader = accelerate.data_loader.prepare_data_loader(
            DataLoader(stream, size, collate_fn=marks, num_workers=workers),
            num_processes=processes,
            process_index=process,
            put_on_device=False,
        )
        own = [expected[start : start + size] for start in range(process * size, len(expected), size * processes)]
        assert list(itertools.islice(loader, steps)) == own
        if not workers:
            rest = accelerate.skip_first_batches(loader, 6)
            rest.set_epoch(0)
            assert list(itertools.islice(rest, steps - 6)) == own[6:]


def test_bad_records_are_left_out_with_one_warning_each_or_an_error(tmp_path):
    file = write(tmp_path / "train.jsonl", [RECORDS[0], BROKEN, RECORDS[1]])
    with pytest.warns(UserWarning, match=r"^left out: train\.jsonl:2: the record has no assistant") as found:
        assert first(Stream(file, skip_bad=True), 6) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert len(found) == 1
    with pytest.raises(RecordError, match=r"^train\.jsonl:2: "):
        first(Stream(file), 2)


def test_streams_that_cannot_go_on_are_refused():
    with refused("a generator can be gone through only once, and training comes back to the start", TypeError):
        Stream(record for record in RECORDS)
    with refused("block=0, shuffle_buffer=0; give 1 or more, and 0 or more", ValueError):
        Stream(RECORDS, block=0)
    with refused("block=1, shuffle_buffer=-1; give", ValueError):
        Stream(RECORDS, shuffle_buffer=-1)
    with refused("no record is left: there are none"):
        next(iter(Stream([])))


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    """The library, with a home of its own."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return pytest.importorskip("datasets")


def test_a_stream_of_the_datasets_library_is_read_whole_by_every_worker(datasets, tmp_path):
    files = [str(write(tmp_path / f"{start}.jsonl", RECORDS[start : start + 5])) for start in (0, 5)]
    source = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    for workers in (0, 2):
        loader = DataLoader(Stream(source, block=2), 2, collate_fn=marks, num_workers=workers)
        expected = [[(place // 10, place % 10), (place // 10, place % 10 + 1)] for place in range(0, 24, 2)]
        assert list(itertools.islice(loader, 12)) == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_data_set_with_pictures_is_opened(stream, datasets, tmp_path, monkeypatch):
    colours = {"a.png": "red", "b.png": "blue", "c.png": "red"}
    for name, colour in colours.items():
        Image.new("RGB", (4, 4), colour).save(tmp_path / name)
    write(tmp_path / "metadata.jsonl", [{"file_name": name, "answer": colour} for name, colour in colours.items()])
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name, **options: load("imagefolder", data_dir=str(tmp_path), **options)
    )
    opened = list(itertools.islice(open_data("owner/name", stream=stream), 3))
    shown = [one.messages[0]["content"][0]["image"].convert("RGB").getpixel((0, 0)) for one in opened]
    assert shown == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    if not stream:
        assert answers(hold_out(opened, count=1)[1]) == ["blue"]


def test_what_the_library_itself_says_is_passed_on(datasets, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with refused("and the Hub cannot be asked for a data set of that name: "):
        open_data("owner/name")
