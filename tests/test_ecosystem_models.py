"""The tests that every model and configuration of transformers has to pass, on ours."""

import re
import unittest
from unittest import mock

import pytest
import torch
from transformers import PreTrainedModel

import ecosystem
from conftest import tiny_config
from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion, LladaVTextConfig
from transformers_lladav.modeling_lladav import LladaVModel
from transformers_lladav.modeling_text_lladav import LladaVPreTrainedModel, LladaVTextModel

common = ecosystem.load("transformers", "test_modeling_common")
configurations = ecosystem.load("transformers", "test_configuration_common")
training = ecosystem.load("transformers", "test_training_mixin")
parallel = ecosystem.load("transformers", "test_tensor_parallel_mixin")

TILE_TOKENS = 17  # 4 x 4 patches and a newline
IMAGE, VIDEO, MASK = 5, 6, 7  # low ids, which stay in the vocabulary when a test makes that smaller
FIRST_WORD = 20  # as high as the training test's words go
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "mask_token_id": MASK, "suppressed_token_ids": []}


_ids = common.ids_tensor


def _words(shape, vocab_size, **options):
    return _ids(shape, vocab_size, **options).clamp(min=FIRST_WORD)


class TextModelTester:
    """A tiny language model and random text."""

    batch_size = 3
    seq_length = 7
    is_training = True
    base_model_class = LladaVTextModel
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config(**IDS).text_config

    def words(self):
        return _words([self.batch_size, self.seq_length], 80)

    def prepare_config_and_inputs_for_common(self):
        words = self.words()
        return self.get_config(), {"input_ids": words, "attention_mask": torch.ones_like(words)}


class ModelTester(TextModelTester):
    """A tiny model, and samples of a picture of one tile and some text."""

    seq_length = TILE_TOKENS + 7
    base_model_class = LladaVModel

    def get_config(self):
        return tiny_config(**IDS)

    def prepare_config_and_inputs_for_common(self):
        config, words = self.get_config(), self.words()
        words[:, 1 : 1 + TILE_TOKENS] = IMAGE
        side = config.vision_config.image_size
        inputs = {
            "input_ids": words,
            "attention_mask": torch.ones_like(words),
            "pixel_values": common.floats_tensor([self.batch_size, 3, side, side]),
            "image_sizes": torch.full((self.batch_size, 2), side),
        }
        return config, inputs


class Registered:
    """The tables of transformers by which the mixins tell base models from those with a head name ours as well."""

    test_can_init_all_missing_weights_before_2023 = True  # asks of all models what it asks of new ones

    @pytest.fixture(autouse=True)
    def _registered(self):
        bases = {"lladav": "LladaVModel", "lladav_text": "LladaVTextModel"}
        heads = {"lladav": "LladaVForMaskedDiffusion"}
        with (
            mock.patch.dict(common.MODEL_MAPPING_NAMES, bases),
            mock.patch.dict(common.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, heads),
            # Labels stand where their tokens are: nothing is shifted.
            mock.patch.object(common, "UNSHIFTED_LM_HEADS", {*common.UNSHIFTED_LM_HEADS, *heads.values()}),
            # Random ids are never placeholders, which have no meaning without a picture.
            mock.patch.object(common, "ids_tensor", _words),
        ):
            yield


class TestModels(Registered, common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LladaVModel, LladaVForMaskedDiffusion)
    # `generate` denoises: what the mixin of autoregressive generation asks, which no distribution holds, is not its.
    all_generative_model_classes = ()
    # The tower's last norm, see below.
    test_all_params_have_gradient = False
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(self)

    def _prepare_for_class(self, inputs, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs, model_class, return_labels)
        if "labels" in inputs:  # given noise, so that two calls can be compared
            inputs["loss_weights"] = torch.ones(inputs["labels"].shape)
        if "input_ids" in inputs and "pixel_values" not in inputs:  # ours are refused without their pictures
            inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, FIRST_WORD)
        return inputs

    def _video_features_prepare_config_and_inputs(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        return config, {
            "pixel_values_videos": inputs["pixel_values"],
            "video_frame_counts": torch.ones(len(inputs["pixel_values"]), dtype=torch.long),
        }

    def test_reverse_loading_mapping(self):
        # We write the native names; asked for, those of the official layout, as transformers does by default.
        with mock.patch.object(LladaVPreTrainedModel, "save_pretrained", PreTrainedModel.save_pretrained):
            super().test_reverse_loading_mapping(skip_base_model=True)  # official names are of the whole model

    # Pictures are placed by ids, so that embeddings come with them in place, and text alone is asked of the mixin.

    def _without_pictures(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        self.model_tester.prepare_config_and_inputs_for_common = lambda: (config, text)
        return config, inputs

    def test_inputs_embeds(self):
        self._without_pictures()
        super().test_inputs_embeds()

    def test_inputs_embeds_matches_input_ids(self):
        config, inputs = self._without_pictures()
        super().test_inputs_embeds_matches_input_ids()
        model = LladaVModel(config).eval()
        with torch.no_grad():
            expected = model(**inputs).last_hidden_state
            mask = inputs.pop("attention_mask")
            embeds, _, _ = model.embed_inputs(**inputs)
            torch.testing.assert_close(model(inputs_embeds=embeds, attention_mask=mask).last_hidden_state, expected)

    def test_can_init_all_missing_weights(self):
        # SigLIP draws its linear layers anew where they are missing, in another order than when it is built. What is
        # ours is the same both ways: every finding names the tower.
        for model_class in self.all_model_classes:
            with (
                mock.patch.object(self, "all_model_classes", (model_class,)),
                pytest.raises(AssertionError, match="not properly handled") as error,
            ):
                super().test_can_init_all_missing_weights()
            assert set(re.findall(r"called from `(\w+)`", str(error.value))) == {"SiglipPreTrainedModel"}

    def test_only_the_towers_last_norm_has_no_gradient(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = LladaVForMaskedDiffusion(config)
        model(**self._prepare_for_class(inputs, LladaVForMaskedDiffusion, return_labels=True)).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert without == {f"model.vision_tower.post_layernorm.{name}" for name in ("weight", "bias")}


class TestTextModel(Registered, common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LladaVTextModel,)

    def setUp(self):
        self.model_tester = TextModelTester(self)


class Greedy(LladaVForMaskedDiffusion):
    """Takes the settings by which autoregressive models are told to take the likeliest token, as ours does anyway."""

    def generate(self, *args, do_sample, use_cache, **kwargs):
        assert not do_sample
        assert not use_cache
        return super().generate(*args, **kwargs)


class TestTraining(training.TrainingTesterMixin, unittest.TestCase):
    all_model_classes = (Greedy,)
    # Each step hides other tokens, so that the loss is noisy and more of them are needed.
    training_overfit_steps = 800
    training_overfit_batch_size = 32
    training_overfit_learning_rate = 2e-3
    training_overfit_seq_length = 20

    class Tester(ModelTester):
        def get_config(self):
            text = {"bos_token_id": 90, "eos_token_id": 91, "pad_token_id": 92}
            ids = {"image_token_id": 93, "video_token_id": 94, "mask_token_id": 95, "suppressed_token_ids": [0]}
            return tiny_config(text_config=text, vocab_size=96, **ids)

    @property
    def model_tester(self):
        return self.Tester(self)


class TestTensorParallel(parallel.TensorParallelTesterMixin, unittest.TestCase):
    all_model_classes = (LladaVModel, LladaVForMaskedDiffusion)

    class Tester(ModelTester):
        conditional_generation_class = LladaVForMaskedDiffusion

    @property
    def model_tester(self):
        return self.Tester(self)


class TestConfigurations(unittest.TestCase):
    def setUp(self):
        self.model_tester = ModelTester(self)

    def test_config(self):
        configurations.ConfigTester(self, LladaVConfig, has_text_modality=False).run_common_tests()

    def test_text_config(self):
        configurations.ConfigTester(self, LladaVTextConfig).run_common_tests()
