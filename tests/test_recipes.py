import dataclasses

import pytest

from transformers_lladav.recipes import TinyRecipe, change_recipe


def test_a_recipe_survives_json():
    recipe = TinyRecipe(steps=2500, learning_rate=3e-4, question_weights={"count": 2.0})
    assert TinyRecipe.from_json(recipe.to_json()) == recipe


def test_unknown_fields_in_json_are_named():
    with pytest.raises(ValueError, match="no field lr"):
        TinyRecipe.from_json('{"lr": 0.1}')


def test_changes_from_a_command_line_keep_all_else():
    changed = change_recipe(TinyRecipe(), ["steps=4000", "learning_rate=1", 'question_weights={"count": 1.0}'])
    expected = dataclasses.replace(TinyRecipe(), steps=4000, learning_rate=1.0, question_weights={"count": 1.0})
    assert changed == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stpes=5", "changes nothing: give FIELD=VALUE with one of picture_side"),
        ("steps", "changes nothing"),
        ("steps=many", "'many' is not a JSON value"),
        ("steps=1.5", "steps takes int, not float"),
        ("steps=true", "steps takes int, not bool"),
    ],
)
def test_wrong_changes_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        change_recipe(TinyRecipe(), [change])


def test_stages_must_fit_and_patches_must_divide():
    with pytest.raises(ValueError, match="tower_steps=6 and dense_steps=5 are more than steps=10"):
        TinyRecipe(tower_steps=6, dense_steps=5, steps=10)
    with pytest.raises(ValueError, match="pass picture_side=64"):
        TinyRecipe(picture_side=70, patch_size=16)
