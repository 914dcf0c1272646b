"""The tests that every model and configuration of transformers has to pass, on ours."""

import unittest

import pytest
import torch

import ecosystem
from conftest import tiny_config
from transformers_lladav import LladaVConfig, LladaVForMaskedDiffusion, LladaVTextConfig
from transformers_lladav.modeling_lladav import LladaVModel
from transformers_lladav.modeling_text_lladav import LladaVTextModel

common = ecosystem.load("transformers", "test_modeling_common")
configurations = ecosystem.load("transformers", "test_configuration_common")
training = ecosystem.load("transformers", "test_training_mixin")

TILE_TOKENS = 17  # 4 x 4 patches and a newline


class ModelTester:
    """A tiny model, and samples of a picture of one tile and some text."""

    batch_size = 3
    seq_length = TILE_TOKENS + 7
    is_training = True
    num_hidden_layers = 2

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config()

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], config.output_vocab_size - 5) + 4
        input_ids[:, 1 : 1 + TILE_TOKENS] = config.image_token_id
        side = config.vision_config.image_size
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": common.floats_tensor([self.batch_size, 3, side, side]),
            "image_sizes": torch.full((self.batch_size, 2), side),
        }
        return config, inputs


class TextModelTester:
    """A tiny language model and random text."""

    batch_size = 3
    seq_length = 7
    is_training = True
    num_hidden_layers = 2

    def __init__(self, parent):
        self.parent = parent

    def get_config(self):
        return tiny_config().text_config

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        input_ids = common.ids_tensor([self.batch_size, self.seq_length], config.vocab_size - 1) + 1
        return config, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class TestModels(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LladaVModel, LladaVForMaskedDiffusion)
    _is_composite = True

    def setUp(self):
        self.model_tester = ModelTester(self)

    def _prepare_for_class(self, inputs, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs, model_class)
        if return_labels and model_class is LladaVForMaskedDiffusion:
            inputs["labels"] = torch.zeros_like(inputs["input_ids"])
        return inputs


class TestTextModel(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LladaVTextModel,)

    def setUp(self):
        self.model_tester = TextModelTester(self)


class TestConfigurations(unittest.TestCase):
    def setUp(self):
        self.model_tester = ModelTester(self)

    def test_config(self):
        configurations.ConfigTester(self, LladaVConfig, has_text_modality=False).run_common_tests()

    def test_text_config(self):
        configurations.ConfigTester(self, LladaVTextConfig).run_common_tests()
