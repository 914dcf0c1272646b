"""What answering needs: the arithmetic against the bytes of real tensors, and the figures of LLaDA-V 8B."""

import pytest

from transformers_lladav import LladaVConfig
from transformers_lladav.answering_memory import answering_memory, answering_rows, weight_bytes
from transformers_lladav.quantization import QUANTIZATIONS

LANGUAGE = 32 * (4 * 4096**2 + 3 * 4096 * 12288)  # entries of its linear layers
ROW = LANGUAGE / (32 * (5 * 4096 + 2 * 12288))  # entries of a row on average


def test_half_precision_is_two_bytes_an_entry(tiny_model):
    model = tiny_model()
    assert weight_bytes(model.config) == 2 * sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("nf4", 4 + 8 / 64 + 32 / 64 / 256),
        ("int8", 8 + 32 / ROW),
        ("int8-weight-only", 8 + 40 / ROW),
        ("int4-weight-only", 4 + 32 / 128),
    ],
)
def test_only_the_language_models_layers_shrink(name, bits):
    config = LladaVConfig()
    saved = weight_bytes(config) - weight_bytes(config, name)
    assert saved == pytest.approx(LANGUAGE * (2 - bits / 8), rel=1e-9)


def test_what_is_remembered_is_half_a_megabyte_a_token():
    """Two tensors of two bytes, 32 layers, 4,096 wide: 524,288 bytes."""
    found = answering_memory(LladaVConfig(), positions=3888)
    assert found.cache == 3888 * 524_288
    assert found.working == 2 * 3888 * (2 * 4096 + 3 * 12288)
    assert found.total == found.weights + found.cache + found.working + 10**9


def test_cards_are_the_smallest_that_hold_everything():
    rows = answering_rows(LladaVConfig())
    assert [row["quantization"] for row in rows] == [None, *QUANTIZATIONS]
    assert [row["card"] for row in rows] == [24, 12, 16, 16, 12]
    assert answering_memory(LladaVConfig(), positions=200_000).card is None
