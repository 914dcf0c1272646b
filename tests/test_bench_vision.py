"""Timing of the vision tower: what is run, never how long it takes."""

import torch

from transformers_lladav.bench_vision import time_vision
from transformers_lladav.modeling_lladav import LladaVModel


def test_every_number_of_tiles_is_run_once_more_than_it_counts(tiny_model, monkeypatch):
    config = tiny_model().config
    seen, told = [], []
    encode = LladaVModel.encode_tiles
    monkeypatch.setattr(
        LladaVModel, "encode_tiles", lambda self, pixels: (seen.append(tuple(pixels.shape)), encode(self, pixels))[1]
    )
    found = time_vision(config, "cpu", torch.float32, [1, 3], rounds=2, on_progress=lambda *each: told.append(each))
    size = config.vision_config.image_size
    assert seen == [(1, 3, size, size)] * 3 + [(3, 3, size, size)] * 3
    assert list(found) == ["1", "3"]
    assert min(found.values()) > 0
    assert told[-1] == (6, 6)
    assert config.text_config.num_hidden_layers == 2  # as it was
