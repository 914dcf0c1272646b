"""`pipeline("image-text-to-text")`: whatever people pass, the answers are those of processor and `generate`."""

import pytest
import torch
from transformers import pipeline

from test_adapters import load_base, save, train
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVStreamer
from transformers_lladav.adapters import load_with_adapter
from transformers_lladav.shape_scenes import make_scene, render_scene

SHORT = {"max_new_tokens": 24, "threshold": 0.9}
CAPTION = "Describe the picture."
COUNT = "How many shapes are there?"


@pytest.fixture(scope="module")
def pipe():
    return pipeline("image-text-to-text", model=BUNDLED_CHECKPOINT, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def pictures():
    return [render_scene(make_scene("demo", number), 128) for number in range(3)]


def new():
    """Arguments for the answer alone; some versions of transformers write into the settings they are given."""
    return {"generate_kwargs": dict(SHORT), "return_full_text": False}


def chat(question, *pictures, **more):
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]
    return [{"role": "user", "content": content}]


@pytest.fixture
def expected(bundled):
    """The answer to a chat without a pipeline."""

    def answer(messages, **settings):
        inputs = bundled.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        found = bundled.model.generate(**inputs, **{**SHORT, **settings}, return_dict_in_generate=True)
        return bundled.processor.decode(found.answers[0], skip_special_tokens=True)

    return answer


def text_of(outputs):
    return [output["generated_text"] for output in outputs]


# Inputs


@pytest.mark.parametrize("question", [CAPTION, COUNT])
def test_a_chat(question, pipe, pictures, expected):
    messages = chat(question, pictures[0])
    assert text_of(pipe(messages, **new())) == [expected(messages)]
    assert text_of(pipe(text=messages, **new())) == [expected(messages)]
    (full,) = pipe(messages, generate_kwargs=dict(SHORT))
    assert full["generated_text"] == [*messages, {"role": "assistant", "content": expected(messages)}]


def test_chats_in_a_batch_and_one_by_one(pipe, pictures, expected):
    chats = [chat(question, picture) for question, picture in zip((CAPTION, COUNT, CAPTION), pictures, strict=True)]
    answers = [expected(messages) for messages in chats]
    for size in (1, 2, 3):
        assert [text_of(outputs)[0] for outputs in pipe(chats, batch_size=size, **new())] == answers


def test_several_pictures_in_a_chat(pipe, pictures, expected):
    messages = chat("What changed?", *pictures[:2])
    assert text_of(pipe(messages, **new())) == [expected(messages)]


def test_several_turns(pipe, pictures, expected):
    messages = [
        *chat(COUNT, pictures[0]),
        {"role": "assistant", "content": [{"type": "text", "text": "three"}]},
        {"role": "user", "content": [{"type": "text", "text": CAPTION}]},
    ]
    assert text_of(pipe(messages, **new())) == [expected(messages)]


def test_a_string_with_a_picture_is_completed_as_it_stands(pipe, pictures, bundled):
    text = "<image>" + CAPTION
    inputs = bundled.processor(images=pictures[0], text=text, return_tensors="pt")
    ids = bundled.model.generate(**inputs, **SHORT)[0, inputs.input_ids.shape[1] :]
    answer = bundled.processor.decode(ids, skip_special_tokens=True)
    assert text_of(pipe(images=pictures[0], text=text, **new())) == [answer]
    (full,) = pipe(images=pictures[0], text=text, generate_kwargs=dict(SHORT))
    assert full["generated_text"].endswith(answer)


def test_strings_with_pictures_in_a_batch(pipe, pictures):
    texts = ["<image>" + CAPTION, "<image>" + COUNT]
    alone = [pipe(images=picture, text=text, **new())[0] for picture, text in zip(pictures[:2], texts, strict=True)]
    together = pipe(images=[[picture] for picture in pictures[:2]], text=texts, **new())
    assert text_of(together) == text_of(alone)


def test_files_and_addresses_of_data(pipe, pictures, expected, tmp_path):
    pictures[0].save(tmp_path / "scene.png")
    messages = chat(CAPTION, str(tmp_path / "scene.png"))
    assert text_of(pipe(messages, **new())) == [expected(chat(CAPTION, pictures[0]))]


@pytest.mark.parametrize("question", ["Which word comes after three?", "Hi"])
def test_text_alone(question, pipe, expected, bundled):
    messages = chat(question)
    assert text_of(pipe(messages, **new())) == [expected(messages)]
    inputs = bundled.processor(text=question, return_tensors="pt")
    ids = bundled.model.generate(**inputs, **SHORT)[0, inputs.input_ids.shape[1] :]
    assert text_of(pipe(text=question, **new())) == [bundled.processor.decode(ids, skip_special_tokens=True)]


def test_a_stream_of_dictionaries(pipe, pictures):
    rows = [{"images": picture, "text": "<image>" + COUNT} for picture in pictures]
    alone = [pipe(**row, **new())[0]["generated_text"] for row in rows]
    assert [text_of(outputs)[0] for outputs in pipe((row for row in rows), **new())] == alone


# Settings


@pytest.mark.parametrize(
    "settings", [{"preset": "balanced"}, {"block_length": 8}, {"cache_implementation": "static"}, {"factor": 0.5}]
)
def test_settings_of_the_loop(settings, pipe, pictures, expected):
    messages = chat(CAPTION, pictures[1])
    settings = {"max_new_tokens": 24, "threshold": None, **settings}
    outputs = pipe(messages, generate_kwargs=dict(settings), return_full_text=False)
    assert text_of(outputs) == [expected(messages, **settings)]


def test_a_length_of_its_own(pipe, pictures, expected):
    messages = chat(CAPTION, pictures[1])
    outputs = pipe(messages, max_new_tokens=8, return_full_text=False)
    assert text_of(outputs) == [expected(messages, max_new_tokens=8, threshold=None)]


def test_a_stop_sequence(pipe, pictures, expected):
    messages = chat(CAPTION, pictures[1])
    whole = expected(messages)
    word = whole.split()[3]
    outputs = pipe(messages, stop_sequence=" " + word, **new())
    assert text_of(outputs) == [whole[: whole.index(" " + word)]]


def test_tokens_in_place_of_text(pipe, pictures, bundled, expected):
    messages = chat(COUNT, pictures[0])
    (output,) = pipe(messages, generate_kwargs=dict(SHORT), return_tensors=True)
    assert bundled.processor.decode(output["generated_token_ids"], skip_special_tokens=True).endswith(
        expected(messages)
    )


def test_a_streamer_sees_the_answer_emerge(pipe, pictures, expected, bundled):
    drafts = []
    streamer = LladaVStreamer(bundled.processor, on_draft=lambda found: drafts.append(found[0].text))
    messages = chat(CAPTION, pictures[0])
    outputs = pipe(messages, generate_kwargs={**SHORT, "streamer": streamer}, return_full_text=False)
    assert len(drafts) > 2
    assert drafts[-1] == text_of(outputs)[0] == expected(messages)


def test_an_answer_that_was_begun_is_gone_on_with(pipe, pictures):
    messages = [*chat(CAPTION, pictures[0]), {"role": "assistant", "content": [{"type": "text", "text": "a small"}]}]
    (output,) = pipe(messages, **new())
    assert output["generated_text"]
    (full,) = pipe(messages, generate_kwargs=dict(SHORT))
    assert full["generated_text"][-1]["content"][-1]["text"] == "a small" + output["generated_text"]


def test_what_a_loop_does_not_have_is_refused_with_the_reason(pipe, pictures):
    with pytest.raises(TypeError, match="sampling is on when temperature > 0"):
        pipe(chat(COUNT, pictures[0]), generate_kwargs={"do_sample": True})
    with pytest.raises(TypeError, match="a denoising loop has no beams"):
        pipe(chat(COUNT, pictures[0]), generate_kwargs={"num_beams": 2})


# Adapters


@pytest.mark.parametrize("way", ["folder", "model"])
def test_an_adapter(way, pictures, bundled, tmp_path):
    torch.manual_seed(0)  # adapters begin with weights that are drawn
    folder = save(train(load_base(), seed=1, size=0.2), tmp_path / "adapter")
    adapted = load_with_adapter(folder, dtype=torch.float32)
    options = {"folder": {"model": str(folder)}, "model": {"model": adapted}}[way]
    pipe = pipeline("image-text-to-text", processor=bundled.processor, device="cpu", dtype=torch.float32, **options)
    messages = chat(CAPTION, pictures[0])
    inputs = bundled.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answers = [
        bundled.processor.decode(
            model.generate(**inputs, **SHORT, return_dict_in_generate=True).answers[0], skip_special_tokens=True
        )
        for model in (adapted, bundled.model)
    ]
    assert answers[0] != answers[1]
    assert text_of(pipe(messages, **new())) == [answers[0]]
