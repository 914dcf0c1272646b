"""Recipes from files and command lines: what is given arrives, and everything else is refused, never passed over."""

import dataclasses
import json

import pytest

from transformers_lladav.recipe_changes import change_recipe, read_recipe
from transformers_lladav.recipes import RECIPES, Lora
from transformers_lladav.tiny_stages import STAGES

LORA = RECIPES["lora"]


@pytest.mark.parametrize("recipe", [*RECIPES.values(), *(stage.recipe for stage in STAGES)])
def test_a_recipe_survives_json(recipe):
    assert read_recipe(recipe.to_json(), LORA) == recipe


def test_a_file_may_hold_some_fields_only():
    changed = read_recipe('{"epochs": 2, "lora": {"rank": 64}}', LORA)
    assert changed == dataclasses.replace(LORA, epochs=2.0, lora=Lora(rank=64))


def test_changes_from_a_command_line_keep_all_else():
    changes = ["lora.rank=64", "lora.dropout=0.1", "epochs=2", "precision=fp32", 'trains=["head"]', "patience=null"]
    expected = dataclasses.replace(
        LORA, lora=Lora(rank=64, dropout=0.1), epochs=2.0, precision="fp32", trains=("head",)
    )
    assert change_recipe(LORA, changes) == expected


def test_an_adapter_can_be_given_to_a_recipe_without_one():
    changed = change_recipe(RECIPES["projector"], ["lora.rank=4"])
    assert changed.lora == Lora(rank=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("learning_rte=5", "a recipe has no field learning_rte; there are name, description, trains"),
        ("lora.rnk=5", r"a recipe has no field lora\.rnk; there are lora\.rank"),
        ("epochs", "'epochs' changes nothing: give FIELD=VALUE"),
        ("=3", "changes nothing"),
        ("epochs=many", 'epochs="many": it takes a number'),
        ("epochs=true", "epochs=true: it takes a number"),
        ("max_length=1.5", r"max_length=1\.5: it takes a whole number"),
        ("packing=1", "packing=1: it takes true or false"),
        ("precision=fp8", 'precision="fp8": it takes "auto", "bf16", "fp16", "fp32"'),
        ('trains=["everything"]', 'trains="everything": it takes "vision_tower", "projector"'),
        ("lora=16", "lora=16: it takes an object or null"),
        ("max_steps=soon", 'max_steps="soon": it takes a whole number or null'),
    ],
)
def test_wrong_changes_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        change_recipe(LORA, [change])


def test_of_a_field_that_is_set_twice_the_last_one_counts():
    changes = ["epochs=2", "lora.rank=3", 'trains=["head"]', "epochs=4", "lora=null"]
    assert change_recipe(LORA, changes) == dataclasses.replace(LORA, epochs=4.0, lora=None, trains=("head",))


def test_a_part_cannot_be_set_after_the_whole():
    with pytest.raises(ValueError, match=r"'lora\.rank=3': lora was set before, as a whole"):
        change_recipe(LORA, ["lora=null", "lora.rank=3"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is no JSON"),
        ("[1]", "a JSON object, not list"),
        (json.dumps({"lr": 1}), "no field lr"),
        ('{"epochs": 1, "epochs": 2}', "a recipe cannot be read: the key 'epochs' stands twice in an object"),
        ("[" * 100_000, "a recipe cannot be read: it is nested too deeply"),
    ],
)
def test_files_that_are_no_recipe_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(text, LORA)
