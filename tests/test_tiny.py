import random

import pytest
import torch

from transformers_lladav import scenes, tiny
from transformers_lladav.recipes import TinyRecipe


@pytest.fixture(scope="module")
def recipe():
    return TinyRecipe(steps=20, tower_steps=2, dense_steps=2, scenes_per_step=6, vision_layers=1, text_layers=1)


@pytest.fixture(scope="module")
def processor(recipe):
    return tiny.build_processor(recipe)


@pytest.fixture(scope="module")
def stream(recipe, processor):
    return tiny.TinyStream(recipe, processor)


@pytest.fixture(scope="module")
def model(recipe, processor):
    return tiny.build_model(recipe, processor)


def test_the_tokenizer_spells_every_text_of_the_world(processor):
    for text in list(scenes.all_texts())[::7]:
        ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert processor.tokenizer.decode(ids) == text
        assert max(ids) < processor.image_token_id


def test_prompts_of_the_stream_are_those_of_the_processor(stream, processor):
    scene = scenes.make_scene("train", 0)
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": scenes.render(scene, 64)},
                {"type": "text", "text": "How many shapes are there?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert list(stream.prompt_ids("How many shapes are there?")) == list(inputs["input_ids"][0])


def test_a_batch_is_a_function_of_its_step(stream):
    first, again, other = stream.batch(7), stream.batch(7), stream.batch(8)
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(again, name)), name
    assert first.input_ids.shape != other.input_ids.shape or not torch.equal(first.input_ids, other.input_ids)


def test_weights_sum_to_one_per_sample_and_stand_where_tokens_are_hidden(stream):
    for step in (2, 5, 6, 8, 12):
        batch = stream.batch(step)
        torch.testing.assert_close(batch.loss_weights.sum(dim=1), torch.ones(len(batch.input_ids)))
        hidden = batch.input_ids == stream.mask
        assert torch.equal(hidden, batch.labels != -100)
        assert torch.equal(hidden, batch.loss_weights > 0)


def test_hidden_positions_are_part_of_one_block_and_all_after_it(stream):
    rng = random.Random(0)
    for _ in range(200):
        hidden = stream._hidden(blocks=2, canvas=32, rng=rng)
        first = hidden.index(True) // tiny.BLOCK_LENGTH
        assert first < 2
        assert not any(hidden[: first * tiny.BLOCK_LENGTH])
        assert all(hidden[(first + 1) * tiny.BLOCK_LENGTH :])


def test_stages_follow_the_recipe(stream):
    assert [stream._kind_of_step(step) for step in range(4)] == ["grid"] * 4
    kinds = [stream._kind_of_step(step) for step in range(4, 20)]
    # Every fourth step is a long text, captions and readings in turn.
    assert kinds.count("caption") == 2
    assert kinds.count("grid") == 2
    assert kinds.count("questions") == 12


def test_answers_that_do_not_fit_the_canvas_are_refused(stream):
    with pytest.raises(ValueError, match="tokens; the canvas holds 31 and an end"):
        stream.answer_ids("star " * 40)


def test_sharing_pictures_gives_the_loss_of_separate_samples(stream, model):
    batch = stream.batch(5)
    shared = tiny.batch_loss(model, batch)
    sizes = torch.full((len(batch.picture_of), 2), 64)
    separate = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values[batch.picture_of],
        image_sizes=sizes,
        labels=batch.labels,
        loss_weights=batch.loss_weights,
    ).loss
    torch.testing.assert_close(shared, separate)


def test_cells_say_what_the_scenes_hold(stream, recipe):
    pixels, labels = stream.cells(3)
    count = 2 * recipe.scenes_per_step
    assert pixels.shape == (count, 3, 64, 64)
    for index in range(count):
        scene = scenes.make_scene("train", tiny.CELL_SCENES + 3 * count + index)
        assert int((labels[index, :, 0] > 0).sum()) == len(scene.objects)
        for item in scene.objects:
            colour, shape = labels[index, item.row * 2 + item.column].tolist()
            assert (list(scenes.COLOURS)[colour - 1], scenes.SHAPES[shape - 1]) == item.pair


def test_the_reader_sees_each_quarter_of_the_map():
    reader = tiny.CellReader(hidden_size=1)
    for layer in (reader.colour, reader.shape):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    features, labels = torch.zeros(3, 16, 1), torch.zeros(3, 4, 2, dtype=torch.long)
    # Nothing known: ln 7 for six colours and none, ln 5 for four shapes and none.
    expected = torch.log(torch.tensor(7.0)) + torch.log(torch.tensor(5.0))
    torch.testing.assert_close(reader.loss(features, labels), expected)
    with torch.no_grad():
        reader.colour.weight[0] = 30.0
        reader.shape.weight[0] = 30.0
    features[:, [2, 3, 6, 7]] = 1.0  # the top right quarter of a 4 x 4 map
    with torch.no_grad():
        grid_loss = reader.loss(features, labels)
    torch.testing.assert_close(grid_loss, 0.75 * expected, atol=1e-4, rtol=0)


def test_the_projector_starts_from_standardised_features(stream, model):
    pixels, _ = stream.cells(0)
    tiny.fit_projector(model, pixels)
    with torch.no_grad():
        hidden = model.model.multi_modal_projector.linear_1(model.model.encode_tiles(pixels).flatten(0, 1))
    torch.testing.assert_close(hidden.mean(dim=0), torch.zeros(hidden.shape[1]), atol=1e-3, rtol=0)
    # Weights of spread 1 / sqrt(width) on independent unit features would give 1; features are correlated.
    assert 0.3 < hidden.std() < 3
