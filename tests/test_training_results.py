"""What a run leaves: it loads with the libraries' own calls, and the files beside the weights say what is true."""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

pytest.importorskip("peft")

from training_runs import log_of, product_of, quick_recipe, settings_of, train, weights_of, write_data
from transformers_lladav import BUNDLED_CHECKPOINT, LladaVForMaskedDiffusion
from transformers_lladav.recipe_changes import read_recipe
from transformers_lladav.recipes import RECIPES
from transformers_lladav.training_results import final_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data for the runs here, held-out data, and the runs themselves."""
    folder = tmp_path_factory.mktemp("results")
    held_out = write_data(folder / "held-out", 3, "validation")
    data = write_data(folder / "data", 8)
    for name in ("lora", "projector"):
        recipe = quick_recipe(name, eval_answers=2, learning_rate=1e-2, max_steps=4)
        train(settings_of(data, folder / name, eval_data=str(held_out)), recipe)
    return folder


def figures(step, loss, match=None):
    given = {"step": step, "eval_loss": loss}
    return given if match is None else {**given, "eval_exact_match": match}


def test_the_figures_are_those_of_the_best_step():
    history = [
        *({"step": step, "loss": float(step)} for step in range(1, 13)),
        figures(4, 2.0, 0.5),
        figures(8, 1.0, 0.7),
        figures(12, 3.0, 0.6),
    ]
    mean = {"train_loss": sum(range(3, 13)) / 10}
    assert final_metrics(history, 8) == {**mean, **figures(8, 1.0), "eval_exact_match": 0.7}
    assert final_metrics(history, None) == {**mean, **figures(12, 3.0), "eval_exact_match": 0.6}
    assert final_metrics(history[:2], None) == {"train_loss": 1.5}
    assert final_metrics([], None) == {}


@pytest.mark.parametrize(("name", "part"), [("lora", "adapter"), ("projector", "model")])
def test_the_files_beside_the_weights(name, part, folder):
    product = folder / name / part
    recipe = quick_recipe(name, eval_answers=2, learning_rate=1e-2, max_steps=4)
    assert read_recipe((product / "recipe.json").read_text(), RECIPES[name]) == recipe
    metrics = json.loads((product / "metrics.json").read_text())
    records = log_of(folder / name)
    losses = [record["loss"] for record in records if "loss" in record]
    best = min((record for record in records if "eval_loss" in record), key=lambda record: record["eval_loss"])
    assert metrics == {
        "train_loss": pytest.approx(sum(losses) / 4),
        "step": best["step"],
        "eval_loss": best["eval_loss"],
        "eval_exact_match": best["eval_exact_match"],
        "samples": 8,
        "tokens": json.loads((folder / name / "run.json").read_text())["tokens"],
        "held_out": 3,
        "left_out": 0,
        "cut": 0,
    }
    lines = (product / "README.md").read_text().splitlines()
    assert f"# {part}" in lines
    assert json.loads((folder / name / "run.json").read_text())["finished"] is True
    assert not list((folder / name).glob(".*"))


def logits_of(model, run_folder):
    """On a prompt with a picture."""
    processor = AutoProcessor.from_pretrained(BUNDLED_CHECKPOINT)
    picture = Image.open(run_folder / "data" / "train-0.png")
    inputs = processor(text="<image>What is it?", images=picture, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_an_adapter_loads_with_peft_and_finds_its_base(folder):
    from peft import PeftModel

    product = folder / "lora" / "adapter"
    config = json.loads((product / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(BUNDLED_CHECKPOINT)
    base = LladaVForMaskedDiffusion.from_pretrained(BUNDLED_CHECKPOINT, dtype=torch.float32)
    plain = logits_of(base, folder)
    tuned = PeftModel.from_pretrained(base, product)
    state = {name.replace(".default", ""): value for name, value in tuned.state_dict().items()}
    for name, tensor in product_of(folder / "lora").items():
        inside = name.replace("multi_modal_projector.", "multi_modal_projector.modules_to_save.")
        assert torch.equal(state[inside], tensor), name
    changed = logits_of(tuned, folder)
    assert not torch.equal(changed, plain)
    direct = AutoModelForImageTextToText.from_pretrained(product, dtype=torch.float32)
    assert torch.allclose(logits_of(direct, folder), changed, atol=1e-5)


def test_a_complete_model_loads_in_the_type_of_its_base(folder):
    product = folder / "projector" / "model"
    stored, original = weights_of(product), weights_of(BUNDLED_CHECKPOINT)
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        name: tensor.dtype for name, tensor in original.items()
    }
    changed = {name for name in stored if not torch.equal(stored[name], original[name])}
    assert changed
    assert all("projector" in name for name in changed)
    model = AutoModelForImageTextToText.from_pretrained(product)
    assert model.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, stored[name]), name
    text = "<|image|> is it?"
    ids, expected = (AutoProcessor.from_pretrained(path).tokenizer(text) for path in (product, BUNDLED_CHECKPOINT))
    assert ids.input_ids == expected.input_ids
