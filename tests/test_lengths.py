"""Lengths without opening a picture, and samples that are too long to be used."""

import pickle
import re

import pytest
from transformers import AutoTokenizer

import parity
from transformers_lladav import LladaVImageProcessor, LladaVProcessor
from transformers_lladav.collation import Collator
from transformers_lladav.data import Examples
from transformers_lladav.lengths import check_lengths
from transformers_lladav.media import check_media
from transformers_lladav.prompt_view import PromptViewer
from transformers_lladav.record_files import DataError


def picture(name):
    return {"type": "image", "image": parity.picture(name)}


def chat(*parts):
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "\n\nAn answer."}]


def video(frames):
    return {"type": "video", "video": (parity.frames() * 9)[:frames]}


CHATS = {
    "text": chat("Hello\n"),
    "a string": [{"role": "user", "content": "What is <image>?"}, {"role": "assistant", "content": " A tag. "}],
    "typed control tokens": chat("<|eot_id|> and <|mdm_mask|>"),
    **{name: chat(picture(name), "What?") for name in parity.PICTURES},
    "two pictures": chat(picture("a1_landscape.jpg"), "\n", picture("a2_portrait.jpg"), "Compare."),
    "a video": chat(video(3), "What?"),
    "a long video": chat(video(40), "What?"),
    "picture and video": chat(picture("a1_landscape.jpg"), video(2), "What?"),
}


def as_examples(chats):
    return [{"messages": messages} for messages in chats]


def lengths_of_the_processor(processor, chats, separator):
    inputs = [
        processor.apply_chat_template(messages, tokenize=True, return_dict=True, image_separator=separator)
        for messages in chats
    ]
    return [len(given["input_ids"][0]) for given in inputs]


@pytest.mark.parametrize("separator", ["\n", ""], ids=repr)
def test_lengths_are_those_of_the_processor(separator, processor):
    ours = check_lengths(as_examples(CHATS.values()), processor, image_separator=separator)
    assert ours.lengths == lengths_of_the_processor(processor, CHATS.values(), separator)
    assert (ours.cut, ours.lost, ours.left_out) == (0, 0, [])
    assert len(ours.examples) == len(CHATS)


@pytest.mark.parametrize("tiling", ["tiles", "square"])
def test_lengths_follow_the_settings_of_the_image_processor(tiling):
    image_processor = LladaVImageProcessor(tiling=tiling, single_tile_newline=False, newline_position="frame")
    processor = LladaVProcessor(image_processor, AutoTokenizer.from_pretrained(parity.OFFICIAL))
    chats = [CHATS[name] for name in ("a4_panorama.jpg", "two pictures", "a video")]
    assert check_lengths(as_examples(chats), processor).lengths == lengths_of_the_processor(processor, chats, "\n")


SEEN = {"messages": chat(picture("a5_tiny_gray.png"), "What is it?"), "source": "train.jsonl:7"}
TEXT = {"messages": chat("Tell me. " * 20), "source": "train.jsonl:8"}


@pytest.mark.parametrize("prompt", ["chat", "plain"])
def test_what_is_cut_is_what_the_collator_cuts(prompt, processor):
    whole = Collator(processor, prompt=prompt).prepare(SEEN)
    for max_length in (len(whole), len(whole) - 1, len(whole) - 3):
        found = check_lengths([SEEN], processor, max_length, prompt=prompt)
        assert found.lengths == [len(Collator(processor, max_length=max_length, prompt=prompt).prepare(SEEN))]
        assert (found.cut, found.lost) == (int(max_length < len(whole)), len(whole) - max_length)


@pytest.mark.parametrize("prompt", ["chat", "plain"])
def test_the_length_that_is_needed_is_the_shortest_the_collator_can_use(prompt, processor):
    parts = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in SEEN["messages"][1:]]
    messages = [SEEN["messages"][0], *parts]
    view = PromptViewer(processor, prompt=prompt).view(messages, check_media(messages))
    needed = view.cut(1).needed
    assert view.length == len(Collator(processor, prompt=prompt).prepare(SEEN))
    last_picture = int((Collator(processor, prompt=prompt).prepare(SEEN).input_ids == 126349).nonzero()[-1])
    for length in (1, last_picture, last_picture + 1, needed - 1, needed):
        cut, collator = view.cut(length), Collator(processor, max_length=length, prompt=prompt, too_long="drop")
        assert cut.through_picture == (length <= last_picture)
        assert cut.answerless == (length < needed)
        if length == needed:
            assert collator.prepare(SEEN) is not None
        else:
            with pytest.warns(UserWarning, match="train.jsonl:7 is left out"):
                assert collator.prepare(SEEN) is None


def test_samples_that_cannot_be_used_are_named_with_what_they_need(processor):
    whole = len(Collator(processor).prepare(SEEN))
    pictures = int((Collator(processor).prepare(SEEN).input_ids == 126349).sum())
    start = int((Collator(processor, answers_only=True).prepare(SEEN).labels != -100).nonzero()[0])
    message = (
        f"1 of 2 samples cannot be used: train.jsonl:7: the sample has {whole} tokens, more than max_length="
        f"{pictures}, and cutting the end would go through a picture or video; shorten it, or pass max_length="
        f"{start + 1} or more (--set max_length={start + 1}); put them right, or pass skip_bad=True (--skip-bad) to "
        "leave them out"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        check_lengths([TEXT, SEEN], processor, pictures)
    with pytest.raises(DataError, match="would leave nothing of the answers; shorten it"):
        check_lengths([SEEN], processor, start)


def test_samples_that_cannot_be_used_are_left_out_and_counted(processor):
    lost = {"messages": chat({"type": "image", "image": "no-such-file.png"}), "source": "train.jsonl:9"}
    told = []
    found = check_lengths(
        [TEXT, SEEN, lost, TEXT], processor, 200, skip_bad=True, on_progress=lambda *at: told.append(at)
    )
    assert list(found.examples) == [TEXT, TEXT]
    assert found.lengths == [len(Collator(processor).prepare(TEXT))] * 2
    assert [error.source for error in found.left_out] == ["train.jsonl:7", "train.jsonl:9"]
    assert "no-such-file.png" in found.left_out[1].reason
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_nothing_that_is_left_is_an_error(processor):
    with pytest.raises(DataError, match=r"^no sample is left: 2 were given; train\.jsonl:7: the sample has .*; train"):
        check_lengths([SEEN, SEEN], processor, 9, skip_bad=True)
    with pytest.raises(DataError, match=r"^4 of 4 samples .*\(and 1 more\); put them right"):
        check_lengths([SEEN] * 4, processor, 9)


def test_samples_that_are_none_for_a_plain_prompt_are_found(processor):
    found = check_lengths([SEEN, TEXT], processor, prompt="plain", skip_bad=True)
    assert list(found.examples) == [SEEN]
    assert str(found.left_out[0]).startswith('train.jsonl:8: the question has no picture, and prompt="plain"')


def test_what_is_left_of_examples_can_be_pickled(processor):
    records = [{"question": "Tell me. " * number, "answer": "Well."} for number in range(1, 9)]
    lengths = check_lengths(Examples(records), processor).lengths
    assert lengths == sorted(lengths)
    assert len(set(lengths)) == 8
    limit = lengths[4]
    found = check_lengths(Examples(records), processor, limit - 10, skip_bad=True)
    copy = pickle.loads(pickle.dumps(found.examples))
    assert [example.source for example in copy] == [f"record {number}" for number in range(len(found.lengths))]
    assert len(found.left_out) == 8 - len(found.lengths) > 0
