"""The tiny model before training: tokenizer, processor and weights fit each other, and are the same every time."""

import pytest
import torch

from transformers_lladav import suite
from transformers_lladav.lettering import CHARACTERS
from transformers_lladav.tiny_model import (
    BLOCK_LENGTH,
    CANVAS,
    TinySizes,
    build_model,
    build_processor,
    build_tokenizer,
)

SMALL = TinySizes(vision_hidden=16, vision_layers=1, text_hidden=16, text_layers=1, heads=2, mlp_ratio=1)


@pytest.fixture(scope="module")
def processor():
    return build_processor(SMALL)


def test_the_tokenizer_is_the_same_every_time(processor):
    vocabulary = build_tokenizer().get_vocab()
    added = {processor.image_token: len(vocabulary), processor.video_token: len(vocabulary) + 1}
    assert processor.tokenizer.get_vocab() == vocabulary | added


def test_characters_of_signs_are_tokens_of_their_own(processor):
    tokenizer = processor.tokenizer
    for index in range(50):
        text = suite.make_sign("train", index).text
        assert len(tokenizer(text, add_special_tokens=False).input_ids) == len(text)
    assert len({tokenizer(character, add_special_tokens=False).input_ids[0] for character in CHARACTERS}) == 36


def test_texts_come_back_from_their_tokens_and_words_are_few_tokens(processor):
    tokenizer = processor.tokenizer
    for index in range(100):
        dialogue = suite.training_dialogue(index, {"scene": 1.0, "chart": 1.0, "change": 1.0}, reasoned=0.3)
        for text in (text for turn in dialogue.turns for text in turn):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            assert tokenizer.decode(ids) == text
            assert len(ids) <= 2 * len(text.replace(",", " ,").replace(";", " ;").replace(":", " :").split()) + 4


def test_a_picture_is_one_tile_of_patches_and_a_line_end(processor):
    messages = suite.example("test", "colour", 0).messages
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 6 * 6 + 1


def test_the_model_fits_the_processor_and_depends_on_the_seed_only(processor):
    model, again = build_model(SMALL, processor), build_model(SMALL, processor)
    other = build_model(TinySizes(**{**vars(SMALL), "seed": 1}), processor)
    weights = [dict(one.named_parameters()) for one in (model, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    drawn = "lm_head.weight"
    assert not torch.equal(weights[0][drawn], weights[2][drawn])
    tokenizer = processor.tokenizer
    assert model.config.output_vocab_size == processor.image_token_id == len(tokenizer) - 2
    assert model.config.mask_token_id == tokenizer.convert_tokens_to_ids("<|mdm_mask|>")
    assert (model.generation_config.block_length, model.generation_config.max_new_tokens) == (BLOCK_LENGTH, CANVAS)
    inputs = processor.apply_chat_template(
        suite.example("test", "change", 11).messages, tokenize=True, return_dict=True, return_tensors="pt",
        add_generation_prompt=True,
    )  # fmt: skip
    assert model.generate(**inputs, max_new_tokens=8).shape[0] == 1


def test_a_picture_is_made_of_whole_patches_and_of_one_at_least():
    with pytest.raises(ValueError, match="picture_side=9 is not a multiple of patch_size=16; pass picture_side=16"):
        TinySizes(picture_side=9)
    with pytest.raises(ValueError, match="picture_side=100 is not a multiple of patch_size=16; pass picture_side=96"):
        TinySizes(picture_side=100)
