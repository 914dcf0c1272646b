import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_lladav.recipe_changes import read_recipe
from transformers_lladav.recipes import TinyRecipe
from transformers_lladav.train_tiny import TinyTrainer, export, learning_rate

SMALL = {
    "scenes_per_step": 3,
    "vision_layers": 1,
    "text_layers": 1,
    "vision_hidden": 32,
    "text_hidden": 32,
    "tower_steps": 3,
    "dense_steps": 2,
    "warmup_steps": 2,
}


def losses(trainer, steps):
    return [trainer.train_step() for _ in range(steps)]


def test_the_rate_warms_up_and_ends_where_it_should():
    recipe = TinyRecipe(steps=2000, warmup_steps=200, learning_rate=1e-3, final_learning_rate=1e-5)
    assert learning_rate(recipe, 0) == pytest.approx(1e-3 / 200)
    assert learning_rate(recipe, 199) == pytest.approx(1e-3)
    assert learning_rate(recipe, 1100) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(recipe, 2000) == pytest.approx(1e-5)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    recipe = TinyRecipe(steps=12, **SMALL)
    whole = losses(TinyTrainer(recipe, tmp_path / "whole"), 10)
    first = TinyTrainer(recipe, tmp_path / "cut")
    begun = losses(first, 6)
    first.save_state()
    second = TinyTrainer(recipe, tmp_path / "cut")
    assert second.step == 6
    assert begun + losses(second, 4) == whole


def test_only_the_newest_state_is_kept_and_it_is_safetensors(tmp_path):
    trainer = TinyTrainer(TinyRecipe(steps=12, **SMALL), tmp_path)
    for _ in range(2):
        losses(trainer, 1)
        trainer.save_state()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-2.safetensors", "status.json"]
    assert json.loads((tmp_path / "status.json").read_text())["step"] == 2


def test_a_run_of_another_recipe_is_not_continued(tmp_path):
    trainer = TinyTrainer(TinyRecipe(steps=12, **SMALL), tmp_path)
    losses(trainer, 1)
    trainer.save_state()
    with pytest.raises(ValueError, match="holds a run of another recipe"):
        TinyTrainer(TinyRecipe(steps=13, **SMALL), tmp_path)


def test_the_tower_alone_changes_in_its_own_steps_and_all_but_the_reader_later(tmp_path):
    trainer = TinyTrainer(TinyRecipe(steps=12, **SMALL), tmp_path)

    def changed_by(steps):
        before = {name: weight.detach().clone() for name, weight in trainer.weights()}
        losses(trainer, steps)
        return {name for name, weight in trainer.weights() if not torch.equal(before[name], weight)}

    early, switch, late = changed_by(3), changed_by(1), changed_by(1)
    assert {name.split(".")[1] if name.startswith("model") else "reader" for name in early} == {
        "vision_tower",
        "reader",
    }
    assert not any(name.startswith("reader") for name in switch | late)
    everything = {name for name, _ in trainer.weights() if not name.startswith("reader")}
    # The tower's final norm is not read by the model, and nothing else is left out.
    assert everything - late == {
        "model.vision_tower.post_layernorm.weight",
        "model.vision_tower.post_layernorm.bias",
    }


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    trainer = TinyTrainer(TinyRecipe(steps=12, **SMALL), tmp_path)
    with torch.no_grad():
        trainer.model.model.vision_tower.embeddings.patch_embedding.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 0; lower learning_rate"):
        trainer.train_step()


def test_a_run_logs_and_its_export_loads_with_the_averaged_weights(tmp_path):
    trainer = TinyTrainer(TinyRecipe(steps=6, **SMALL), tmp_path / "run")
    records = []
    trainer.run(records.append, evaluate_every=6, questions=7, save_every=3)
    assert [record["step"] for record in records] == [6]
    assert set(records[0]["validation"]) == {
        "colour", "shape", "what_is_at", "where_is", "count", "existence", "caption",
    }  # fmt: skip
    export(trainer, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, trainer.average[name].bfloat16().float()), name
    assert model.generation_config.block_length == 8
    assert (tmp_path / "out" / "modeling_lladav.py").is_file()  # loads where the package is not installed
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_token_id == model.config.image_token_id
    assert read_recipe((tmp_path / "out" / "recipe.json").read_text(), TinyRecipe()) == trainer.recipe
