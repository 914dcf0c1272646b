"""Lengths without opening a picture, and batches of similar length."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

import parity
from transformers_lladav import LladaVImageProcessor, LladaVProcessor
from transformers_lladav.lengths import LengthGroupedBatches, merged_lengths
from transformers_lladav.samples import Numbered


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


def lengths_of_the_processor(processor, chats, separator):
    inputs = [
        processor.apply_chat_template(messages, tokenize=True, return_dict=True, image_separator=separator)
        for messages in chats
    ]
    return [len(given["input_ids"][0]) for given in inputs]


@pytest.mark.parametrize("separator", ["\n", ""], ids=repr)
def test_lengths_are_those_of_the_processor(separator, processor):
    ours = merged_lengths(CHATS.values(), processor, separator)
    assert ours == lengths_of_the_processor(processor, CHATS.values(), separator)


@pytest.mark.parametrize("tiling", ["tiles", "square"])
def test_lengths_follow_the_settings_of_the_image_processor(tiling):
    image_processor = LladaVImageProcessor(tiling=tiling, single_tile_newline=False, newline_position="frame")
    processor = LladaVProcessor(image_processor, AutoTokenizer.from_pretrained(parity.OFFICIAL))
    chats = [CHATS[name] for name in ("a4_panorama.jpg", "two pictures", "a video")]
    assert merged_lengths(chats, processor) == lengths_of_the_processor(processor, chats, "\n")


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), st.integers(1, 9), st.booleans(), st.integers(0, 9))
def test_batches_hold_every_sample_once(lengths, batch_size, drop_last, seed):
    sampler = LengthGroupedBatches(Numbered(lengths), lengths, batch_size, seed, drop_last)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    drawn = [index for batch in batches for index in batch]
    assert len(set(drawn)) == len(drawn)
    assert len(drawn) == (len(lengths) // batch_size * batch_size if drop_last else len(lengths))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if len(batches) > 1:
        assert max(lengths[index] for index in batches[0]) == max(lengths)


def test_batches_are_of_similar_length_and_differ_by_epoch_and_seed():
    lengths = [(7919 * index) % 1000 for index in range(1000)]
    data = Numbered(lengths)
    sampler = LengthGroupedBatches(data, lengths, 8, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    data.set_epoch(1)
    assert list(sampler) != first
    data.set_epoch(0)
    assert list(sampler) == first
    assert list(LengthGroupedBatches(data, lengths, 8, seed=2)) != first
    # Groups of 31 batches (1000 // (8 * 4)) of 1000 even lengths: a batch of 8 spans about 8 / 248 of them.
    spans = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in first[1:-1]]
    assert sorted(spans)[len(spans) // 2] < 60
    order = [max(lengths[i] for i in batch) for batch in first[1:-1]]
    assert order != sorted(order, reverse=True)


def test_accelerate_shares_the_batches_out_and_sets_the_epoch_of_order_and_samples():
    data_loader = pytest.importorskip("accelerate.data_loader")
    lengths = list(range(32))
    found = []
    for process in (0, 1):
        data = Numbered([{"messages": [number]} for number in lengths])
        order = LengthGroupedBatches(data, lengths, 2, seed=1)
        loader = DataLoader(data, batch_sampler=order, collate_fn=lambda s: [(x.index, x.epoch) for x in s])
        prepared = data_loader.prepare_data_loader(loader, num_processes=2, process_index=process, put_on_device=False)
        prepared.set_epoch(3)
        found.append(list(prepared))
    data.set_epoch(3)
    expected = [[(index, 3) for index in batch] for batch in order]
    assert [batch for pair in zip(*found, strict=True) for batch in pair] == expected


def test_lengths_that_make_no_batches_are_refused():
    with pytest.raises(ValueError, match="0 samples in batches of 4; give one sample and one per batch"):
        LengthGroupedBatches(Numbered([]), [], 4)
    with pytest.raises(ValueError, match="3 samples in batches of 0"):
        LengthGroupedBatches(Numbered([1, 2, 3]), [1, 2, 3], 0)
    with pytest.raises(ValueError, match="2 lengths were given for 3 samples; give one each"):
        LengthGroupedBatches(Numbered([1, 2, 3]), [1, 2], 1)
