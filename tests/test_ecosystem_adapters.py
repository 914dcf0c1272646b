"""PEFT's shared tests of adapters, on ours: saved, loaded, merged, switched off, several at once."""

import inspect

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig

import ecosystem
from conftest import tiny_config
from transformers_lladav import LladaVForMaskedDiffusion

common = ecosystem.load("peft", "testing_common")
utilities = ecosystem.load("peft", "testing_utils")

TILE_TOKENS = 17  # 4 x 4 patches and a newline
# Of the language model: the tower has a q_proj as well, and sees tiles in the place of samples.
ATTENTION = r".*language_model.*\.(q_proj|v_proj)"
METHODS = {
    "lora": (LoraConfig, {"r": 8, "lora_alpha": 32, "target_modules": ATTENTION, "lora_dropout": 0.0}),
    "dora": (LoraConfig, {"r": 8, "lora_alpha": 32, "target_modules": ATTENTION, "use_dora": True}),
    "ia3": (IA3Config, {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "loha": (LoHaConfig, {"r": 8, "target_modules": ATTENTION}),
}
# Methods other than LoRA run what loads, merges and switches them; the rest is about LoRA's own options.
EVERY_METHOD = (
    "adapter_name",
    "delete_adapter",
    "disable_adapter",
    "generate",
    "get_base_model_state_dict",
    "load_multiple_adapters",
    "merge_layers",
    "save_pretrained",
    "training",
    "unload_adapter",
)
# Checks that compare what an adapter does want one that does something from the start.
UNEQUAL = (
    "disable_adapter",
    "inference_safetensors",
    "merge_layers",
    "merge_layers_fp16",
    "merge_layers_is_idempotent",
    "merge_layers_multi",
    "merge_layers_nan",
    "mixed_adapter_batches",
    "generate_with_mixed_adapter_batches_and_beam_search",
    "safe_merge",
    "save_pretrained",
    "save_pretrained_selected_adapters",
    "unload_adapter",
    "weighted_combination_of_adapters",
    "lora_conversion",
)
MORE = {
    "add_adapter_no_autocast_adapter_dtype": [{"dtype": torch.float16}, {"dtype": torch.bfloat16}],
    "generate_pos_args": [{"raises_err": False}],
    "passing_input_embeds_works": [{"test_name": ""}],
    "save_pretrained": [{"safe_serialization": True}, {"safe_serialization": False}],
    "save_pretrained_selected_adapters": [{"safe_serialization": True}, {"safe_serialization": False}],
    "training_gradient_checkpointing": [{"use_reentrant": True}, {"use_reentrant": False}],
}
# Checks that others call, or that have a signature of their own.
PARTS = ("weighted_combination_of_adapters_lora", "weighted_combination_of_adapters_ia3")
# Pictures are placed by ids, so that embeddings come without, and so do ids alone.
TEXT_ONLY = ("generate_pos_args", "passing_input_embeds_works")
SKIPPED = {
    "generate_with_mixed_adapter_batches_and_beam_search": "a denoising loop has no beams; mixed_adapter_batches "
    "generates with several adapters without them",
}


def checks():
    """Every check of the common tester with the method and the settings to run it with."""
    names = [name for name, _ in inspect.getmembers(common.PeftCommonTester, inspect.isfunction)]
    for check in sorted(name.removeprefix("_test_") for name in names if name.startswith("_test_")):
        for method in METHODS if check in EVERY_METHOD else ("lora",):
            for settings in [] if check in PARTS else MORE.get(check, [{}]):
                marks = [pytest.mark.skip(reason=SKIPPED[check])] if check in SKIPPED else []
                label = "-".join([check, method, *map(str, settings.values())])
                yield pytest.param(check, method, settings, id=label, marks=marks)


class Model(LladaVForMaskedDiffusion):
    """Hands out scores as autoregressive models do: a tuple, here of one (batch, canvas), without gaps."""

    def generate(self, *args, **kwargs):
        output = super().generate(*args, **kwargs)
        if not isinstance(output, torch.Tensor):
            output.scores = (output.scores.nan_to_num(),)
        return output


class TestAdapters(common.PeftCommonTester):
    transformers_class = Model

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("adapters") / "tiny"
        torch.manual_seed(0)
        model = LladaVForMaskedDiffusion(tiny_config(image_token_id=90))
        model.generation_config.max_new_tokens = 8
        model.save_pretrained(folder)
        return str(folder)

    text_only = False

    def prepare_inputs_for_testing(self):
        if self.text_only:
            return {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}
        ids = torch.tensor([[5, 6, *[90] * TILE_TOKENS, 7], [8, 9, *[90] * TILE_TOKENS, 10]])
        torch.manual_seed(0)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": torch.randn(2, 3, 56, 56),
            "image_sizes": torch.full((2, 2), 56),
        }

    @pytest.mark.parametrize(("check", "method", "settings"), checks())
    def test_common(self, check, method, settings, folder):
        kind, options = METHODS[method]
        self.text_only = check in TEXT_ONLY
        if check in UNEQUAL:
            options = utilities.set_init_weights_false(kind, options)
        if check == "training_layer_indexing":  # which takes names only, those of the tower's layers as well
            options = {**options, "target_modules": ["q_proj", "v_proj"]}
        run = getattr(self, f"_test_{check}")
        run(model_id=folder, config_cls=kind, config_kwargs=dict(options), **settings)
