"""Prompts are to the letter those of the format, whatever form the contents and the system prompt have."""

import pytest
from transformers import AutoTokenizer

import parity
from transformers_lladav import LladaVImageProcessor, LladaVProcessor
from transformers_lladav.chat_template_lladav import DEFAULT_SYSTEM_PROMPT, build_chat_template


def test_a_chat_without_system_message_starts_with_the_default_one(processor):
    text = processor.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert text == (
        f"<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n{DEFAULT_SYSTEM_PROMPT}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    )


def test_a_template_can_have_another_system_prompt_with_quotes_and_line_feeds():
    prompt = 'It\'s a\n"small" back\\slash.'
    tokenizer = AutoTokenizer.from_pretrained(parity.OFFICIAL)
    processor = LladaVProcessor(LladaVImageProcessor(), tokenizer, chat_template=build_chat_template(prompt))
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
