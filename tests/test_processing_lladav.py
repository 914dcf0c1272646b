"""Chats, pictures and videos to model inputs: the official ids, batches, and what does not fit together."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import parity
from transformers_lladav import LladaVImageProcessor, LladaVProcessor
from transformers_lladav.processing_lladav import DEFAULT_SYSTEM_PROMPT, build_chat_template

PROMPTS = parity.by_id("prompts", "prompts")
CONVERSATIONS = parity.by_id("sft_preprocess", "conversations")
TINY, PANORAMA = "a5_tiny_gray.png", "a4_panorama.jpg"


def picture_counts(prompt):
    """Tokens of each -200 of a prompt, from the fixtures alone."""
    numbers = parity.numbers("preprocess")
    if prompt["image_mode"] == "video":
        position = parity.GEOMETRY.get(prompt["id"], {}).get("newline_position", "grid")
        return [numbers["video"]["token_counts"][position]]
    if prompt["image_mode"] in ("pad_list", "pad_stacked"):
        return [730 if prompt["image_mode"] == "pad_list" else 729] * len(prompt["images"])
    return [numbers["images"][name]["variants"]["rgb"]["total_image_tokens"] for name in prompt["images"]]


@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_has_the_official_ids_with_its_pictures_expanded(name, processor, parity_report):
    prompt = PROMPTS[name]
    token_id = processor.video_token_id if prompt["image_mode"] == "video" else processor.image_token_id
    expected = parity.expand(prompt["input_ids"], picture_counts(prompt), token_id)
    inputs = parity.model_inputs(processor, prompt)
    parity_report.same("prompts: ids", name, inputs.input_ids[0].tolist(), expected)
    assert inputs.attention_mask.all()


@pytest.mark.parametrize("name", [name for name, prompt in PROMPTS.items() if prompt["image_mode"] != "video"])
def test_the_text_with_a_line_feed_as_separator_is_the_official_text(name, processor, parity_report):
    prompt = PROMPTS[name]
    messages = parity.chat({**prompt, "id": None})
    text = processor.apply_chat_template(messages, add_generation_prompt=True, image_separator="\n")
    parity_report.same("prompts: text", name, list(text), list(prompt["prompt"]))


@pytest.mark.parametrize("name", ["single_turn", "two_images", "text_only"])
def test_a_line_feed_as_separator_gives_the_official_training_ids(name, processor, tokenizer, parity_report):
    conversation = CONVERSATIONS[name]
    roles = {"human": "user", "gpt": "assistant"}
    messages = [{"role": roles[role], "content": text} for role, text in conversation["conversations"]]
    text = processor.apply_chat_template(messages, image_separator="\n")
    expected = parity.expand(conversation["input_ids"], [1, 1], processor.image_token_id)
    ours = tokenizer(text, add_special_tokens=False).input_ids
    parity_report.same("prompts: training ids", name, ours, expected)


def test_the_placeholders_are_the_first_ids_after_the_official_tokenizer(official_tokenizer, processor):
    assert len(official_tokenizer) == parity.TOKENS
    assert (processor.image_token, processor.image_token_id) == ("<image>", 126349)
    assert (processor.video_token, processor.video_token_id) == ("<video>", 126350)


def test_a_chat_without_system_message_starts_with_the_default_one(processor):
    text = processor.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text == (
        f"<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n{DEFAULT_SYSTEM_PROMPT}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    )


def test_a_template_can_have_another_system_prompt_with_quotes_and_line_feeds(official_tokenizer):
    prompt = 'It\'s a\n"small" back\\slash.'
    processor = LladaVProcessor(LladaVImageProcessor(), official_tokenizer, chat_template=build_chat_template(prompt))
    text = processor.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text.startswith(f"<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n{prompt}<|eot_id|>")


def test_contents_are_trimmed_and_only_a_generation_prompt_opens_the_answer(processor):
    messages = [
        {"role": "system", "content": " S \n"},
        {"role": "user", "content": "\n Q "},
        {"role": "assistant", "content": " A "},
    ]
    closed = processor.apply_chat_template(messages)
    assert closed == (
        "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    )
    opened = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert opened == closed + "<|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.mark.parametrize("separator", ["", "\n", " "])
def test_list_contents_give_the_text_of_string_contents(separator, processor):
    text = {"type": "text", "text": "Compare."}
    as_list = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, text]}]
    as_string = [{"role": "user", "content": "<image>\n<image>\nCompare."}]
    rendered = [
        processor.apply_chat_template(messages, image_separator=separator) for messages in (as_list, as_string)
    ]
    assert rendered[0] == rendered[1]
    assert f"\n\n<image>{separator}<image>{separator}Compare.<|eot_id|>" in rendered[0]


def test_an_unknown_content_part_is_refused_by_its_type(processor):
    messages = [{"role": "user", "content": [{"type": "smell", "smell": "roses"}]}]
    with pytest.raises(Exception, match="a content part has type smell; use text, image or video"):
        processor.apply_chat_template(messages)


def mixed_batch():
    """Texts with pictures and videos by sample: short text, long text, one picture, two pictures, a video."""
    texts = ["Hi", "A longer question, " * 9, "<image>What?", "<image><image>Compare.", "<video>What happens?"]
    pictures = [[], [], [parity.picture(TINY)], [parity.picture(PANORAMA), parity.picture(TINY)], []]
    videos = [[], [], [], [], [parity.frames()[:2]]]
    return texts, pictures, videos


def test_a_mixed_batch_is_padded_on_the_left_and_equals_its_samples(processor):
    texts, pictures, videos = mixed_batch()
    batch = processor(text=texts, images=pictures, videos=videos, return_tensors="pt")
    alone = [
        processor(text=text, images=images or None, videos=frames or None, return_tensors="pt")
        for text, images, frames in zip(texts, pictures, videos, strict=True)
    ]
    longest = max(item.input_ids.shape[1] for item in alone)
    assert batch.input_ids.shape == (5, longest)
    for row, mask, item in zip(batch.input_ids, batch.attention_mask, alone, strict=True):
        length = item.input_ids.shape[1]
        assert row.tolist() == [parity.PAD] * (longest - length) + item.input_ids[0].tolist()
        assert mask.tolist() == [0] * (longest - length) + [1] * length
    for name in ("pixel_values", "image_sizes", "image_tile_counts"):
        assert torch.equal(batch[name], torch.cat([item[name] for item in alone if name in item]))
    assert batch.image_tile_counts.tolist() == [2, 1, 1]
    assert torch.equal(batch.pixel_values_videos, alone[4].pixel_values_videos)
    assert batch.video_frame_counts.tolist() == [2]
    tokens = (batch.input_ids == processor.image_token_id).sum(dim=1).tolist()
    assert tokens == [0, 0, 1261, 1460, 0]
    assert (batch.input_ids == processor.video_token_id).sum(dim=1).tolist() == [0, 0, 0, 0, 2 * 14 * 15]


def test_a_flat_list_of_pictures_is_dealt_out_to_the_placeholders(processor):
    texts, pictures, _ = mixed_batch()
    nested = processor(text=texts[:4], images=pictures[:4], return_tensors="pt")
    flat = processor(text=texts[:4], images=[item for sample in pictures for item in sample], return_tensors="pt")
    assert nested.keys() == flat.keys()
    assert all(torch.equal(nested[name], flat[name]) for name in nested)


def test_only_what_forward_takes_comes_out(processor):
    texts, pictures, videos = mixed_batch()
    text_only = {"input_ids", "attention_mask"}
    assert set(processor(text=texts[:2], return_tensors="pt")) == text_only
    with_all = processor(text=texts, images=pictures, videos=videos, return_tensors="pt")
    assert set(with_all) == text_only | {
        "pixel_values",
        "image_sizes",
        "image_tile_counts",
        "pixel_values_videos",
        "video_frame_counts",
    }
    assert set(with_all) <= set(processor.model_input_names)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_the_padding_side_can_be_chosen(padding_side, processor):
    batch = processor(text=["Hi", "Hello, how are you?"], padding_side=padding_side, return_tensors="pt")
    padded = batch.attention_mask[0].tolist()
    assert padded == sorted(padded, reverse=padding_side == "right")
    assert 0 in padded


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_video_is_a_list_of_frames_alone_or_by_sample(kind, processor):
    frames = kind(parity.frames()[:3])
    expected = processor(text="<video>Q", videos=[[frames]], return_tensors="pt")
    for videos in (frames, [frames]):
        got = processor(text="<video>Q", videos=videos, return_tensors="pt")
        assert torch.equal(got.pixel_values_videos, expected.pixel_values_videos)
        assert torch.equal(got.input_ids, expected.input_ids)
    assert expected.video_frame_counts.tolist() == [3]


def test_two_videos_keep_their_frames_apart(processor):
    frames = parity.frames()
    got = processor(text=["<video>A", "<video>B"], videos=[frames[:2], frames[2:5]], return_tensors="pt")
    assert got.video_frame_counts.tolist() == [2, 3]
    assert (got.input_ids == processor.video_token_id).sum(dim=1).tolist() == [2 * 210, 3 * 210]


@pytest.mark.parametrize(
    ("position", "tokens"), [("grid", 210), ("frame", 197), ("one_token", 197), ("no_token", 196)]
)
def test_settings_of_one_call_reach_the_video(position, tokens, processor):
    got = processor(text="<video>Q", videos=parity.frames()[:1], newline_position=position, return_tensors="pt")
    assert int((got.input_ids == processor.video_token_id).sum()) == tokens


def test_picture_counts_that_do_not_fit_name_the_sample_and_both_counts(processor):
    one = parity.picture(TINY)
    with pytest.raises(ValueError, match="sample 1 has 2 <image> placeholders and 1 pictures"):
        processor(text=["<image>a", "<image><image>b"], images=[[one], [one]])
    with pytest.raises(ValueError, match="sample 0 has 0 <image> placeholders and 1 pictures"):
        processor(text=["a"], images=[[one]])
    with pytest.raises(ValueError, match="sample 0 has 1 <image> placeholders and 0 pictures"):
        processor(text=["<image>a"])
    with pytest.raises(ValueError, match=r"1 were given for 3 <image> placeholders \(\[1, 2\] by sample\)"):
        processor(text=["<image>a", "<image><image>b"], images=[one])
    with pytest.raises(ValueError, match="pictures were given for 2 samples, but there are 1 texts"):
        processor(text=["<image>a"], images=[[one], [one]])
    with pytest.raises(ValueError, match="sample 0 has 1 <video> placeholders and 0 videos"):
        processor(text=["<video>a"])


def test_a_truncation_that_would_cut_a_picture_is_refused(processor):
    one = parity.picture(TINY)
    with pytest.raises(ValueError, match="cut a picture of sample 0: 100 of its 1261 tokens fit; raise max_length"):
        processor(text=["<image>a"], images=[one], truncation=True, max_length=100)
    kept = processor(text=["<image>aa bb cc dd"], images=[one], truncation=True, max_length=1262, return_tensors="pt")
    assert kept.input_ids.shape == (1, 1262)
    with pytest.raises(ValueError, match="cut a video of sample 0: 50 of its 210 tokens fit"):
        processor(text=["<video>a"], videos=[parity.frames()[:1]], truncation=True, max_length=50)


def test_nothing_and_audio_are_refused(processor):
    with pytest.raises(ValueError, match="there is nothing to process"):
        processor()
    with pytest.raises(ValueError, match="no audio"):
        processor(text="a", audio=[0.0])


def test_a_bad_picture_is_named_through_the_processor(processor):
    with pytest.raises(ValueError, match=r"image 2 \(gone.jpg\) cannot be read as a picture"):
        processor(text="<image><image>", images=[[parity.picture(TINY), "gone.jpg"]])


def test_saving_and_loading_gives_equal_outputs(processor, tmp_path):
    changed = LladaVProcessor(
        LladaVImageProcessor(max_tiles=1, newline_position="frame"),
        processor.tokenizer,
        chat_template=build_chat_template("Be brief."),
    )
    changed.save_pretrained(tmp_path)
    texts, pictures, videos = mixed_batch()
    messages = [{"role": "user", "content": "Hi"}]
    expected = changed(text=texts, images=pictures, videos=videos, return_tensors="pt")
    for loaded in (LladaVProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is LladaVProcessor
        got = loaded(text=texts, images=pictures, videos=videos, return_tensors="pt")
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], expected[name]) for name in expected)
        assert loaded.apply_chat_template(messages) == changed.apply_chat_template(messages)
        assert "Be brief." in loaded.apply_chat_template(messages)
        assert (loaded.image_token_id, loaded.video_token_id) == (126349, 126350)


def picture_chat(source, question="What is it?"):
    image = {"type": "image", "image": source}
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


def tokenized(processor, chats, **options):
    return processor.apply_chat_template(
        chats, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **options
    )


@pytest.mark.parametrize("as_path", [False, True], ids=["PIL", "path"])
def test_a_chat_with_its_picture_inside_gives_the_inputs_of_text_and_picture(as_path, processor):
    path = parity.FOLDER / "images" / TINY
    messages = picture_chat(str(path) if as_path else Image.open(path))
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    expected = processor(text=text, images=[Image.open(path)], return_tensors="pt")
    got = tokenized(processor, messages)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert got.pixel_values.shape == (2, 3, 384, 384)


def test_a_batch_of_chats_equals_its_chats(processor):
    chats = [
        [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
        picture_chat(parity.picture(TINY)),
        picture_chat(parity.picture(PANORAMA), "And this one?"),
    ]
    batch = tokenized(processor, chats)
    alone = [tokenized(processor, messages) for messages in chats]
    for row, mask, item in zip(batch.input_ids, batch.attention_mask, alone, strict=True):
        assert torch.equal(row[mask.bool()], item.input_ids[0])
    assert torch.equal(batch.pixel_values, torch.cat([alone[1].pixel_values, alone[2].pixel_values]))
    assert batch.image_tile_counts.tolist() == [2, 3]


def test_a_chat_takes_a_video_as_a_list_of_frames(processor):
    video = {"type": "video", "video": parity.frames()[:2]}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": "What happens?"}]}]
    got = tokenized(processor, messages)
    assert got.video_frame_counts.tolist() == [2]
    assert int((got.input_ids == processor.video_token_id).sum()) == 2 * 14 * 15


def test_pictures_can_be_counted_from_their_sizes(processor):
    images = parity.numbers("preprocess")["images"].values()
    sizes = [tuple(entry["size_wh"][::-1]) for entry in images]
    counted = processor._get_num_multimodal_tokens(image_sizes=sizes)
    expected = [entry["variants"]["rgb"] for entry in images]
    assert counted["num_image_tokens"] == [entry["total_image_tokens"] for entry in expected]
    assert counted["num_image_patches"] == [entry["n_tiles_with_base"] for entry in expected]


def test_the_pixel_limit_of_one_call_reaches_pictures_and_videos(processor, monkeypatch):
    monkeypatch.setattr(processor.image_processor, "max_image_pixels", 1000)
    one = parity.picture(TINY)
    with pytest.raises(ValueError, match="image 1 has 41 x 29 = 1189 pixels, more than max_image_pixels=1000"):
        processor(text="<image>a", images=[one])
    with pytest.raises(ValueError, match="video 1, frame 0 has 41 x 29 = 1189 pixels"):
        processor(text="<video>a", videos=[one])
    assert processor(text="<image>a", images=[one], max_image_pixels=1189).image_sizes == [(29, 41)]
    assert processor(text="<video>a", videos=[one], max_image_pixels=1189).video_frame_counts == [1]
