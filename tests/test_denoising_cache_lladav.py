"""Keys and values between passes are those of their positions, and nothing that gradients could want is kept."""

import pytest
import torch
from transformers import Cache, DynamicCache

from transformers_lladav.denoising_cache_lladav import DenoisingCache, KnownKeys

LENGTH, PROMPT = 12, 8


@pytest.fixture(params=["one head of keys each", "grouped heads"])
def language_model(request, tiny_model):
    groups = {"one head of keys each": 4, "grouped heads": 2}
    model = tiny_model(text_config={"num_key_value_heads": groups[request.param]}).model.language_model
    for weight in model.layers.parameters():
        if weight.ndim == 2:
            weight.data *= 8  # so that positions take notice of each other
    return model


@pytest.fixture
def embeds(language_model):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, LENGTH, language_model.config.hidden_size, generator=generator)


def whole_pass(language_model, embeds, **options):
    with torch.no_grad():
        return language_model(inputs_embeds=embeds, **options).last_hidden_state


def at(positions):
    """Positions of two rows."""
    return torch.tensor(positions)


def test_it_is_a_cache_of_transformers():
    assert isinstance(DenoisingCache(2), Cache)
    assert len(DenoisingCache(2)) == 2


def test_a_whole_pass_is_what_it_is_without_a_cache(language_model, embeds):
    cache = DenoisingCache(2)
    hidden = whole_pass(language_model, embeds, past_key_values=cache, position_ids=torch.arange(LENGTH)[None])
    assert torch.equal(hidden, whole_pass(language_model, embeds))
    assert cache.get_seq_length() == LENGTH


@pytest.mark.parametrize(
    "positions",
    [[[8, 9, 10, 11]] * 2, [[1, 5, 7], [0, 2, 11]], [[3, 4, 4], [9, 10, 11]]],
    ids=["an end", "places of their own", "a position twice"],
)
def test_a_pass_over_some_positions_replaces_theirs_and_sees_the_others_as_they_were(
    language_model, embeds, positions
):
    """Nothing has changed since the whole pass, so that its hidden states come out again."""
    positions = at(positions)
    cache = DenoisingCache(2)
    whole = whole_pass(language_model, embeds, past_key_values=cache, position_ids=torch.arange(LENGTH)[None])
    keys = [layer.keys.clone() for layer in cache.layers]
    cache.look_at(positions)
    rows = torch.arange(2)[:, None]
    some = whole_pass(language_model, embeds[rows, positions], past_key_values=cache, position_ids=positions)
    torch.testing.assert_close(some, whole[rows, positions], rtol=1e-5, atol=1e-5)
    for layer, before in zip(cache.layers, keys, strict=True):
        torch.testing.assert_close(layer.keys, before, rtol=1e-5, atol=1e-5)


def test_after_a_change_it_is_the_prefix_cache_of_an_autoregressive_model(language_model, embeds):
    """Keys of the prompt as they were, those of the answer anew: what transformers' own cache does with a prefix."""
    position_ids = torch.arange(LENGTH)[None]
    cache = DenoisingCache(2)
    whole_pass(language_model, embeds, past_key_values=cache, position_ids=position_ids)
    prefix = DynamicCache()
    for index, layer in enumerate(cache.layers):
        prefix.update(layer.keys[:, :, :PROMPT].clone(), layer.values[:, :, :PROMPT].clone(), index)
    answer = embeds[:, PROMPT:] + 1
    options = {"position_ids": position_ids[:, PROMPT:]}
    expected = whole_pass(language_model, answer, past_key_values=prefix, **options)
    cache.look_at(torch.arange(PROMPT, LENGTH).expand(2, -1))
    found = whole_pass(language_model, answer, past_key_values=cache, **options)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    changed = torch.cat([embeds[:, :PROMPT], answer], dim=1)
    assert not torch.allclose(found, whole_pass(language_model, changed)[:, PROMPT:], atol=1e-3)  # an approximation


def test_samples_can_be_dropped(language_model, embeds):
    cache = DenoisingCache(2)
    whole = whole_pass(language_model, embeds, past_key_values=cache, position_ids=torch.arange(LENGTH)[None])
    cache.select(torch.tensor([1]))
    cache.look_at(at([[8, 9]]))
    some = whole_pass(language_model, embeds[1:, 8:10], past_key_values=cache, position_ids=at([[8, 9]]))
    torch.testing.assert_close(some, whole[1:, 8:10], rtol=1e-5, atol=1e-5)


def test_the_first_pass_must_be_whole():
    with pytest.raises(ValueError, match="the first pass with a DenoisingCache must be over whole sequences"):
        DenoisingCache(2).look_at(at([[0]]))


def test_gradients_are_refused(language_model, embeds):
    with pytest.raises(RuntimeError, match=r"no gradient flows; use torch\.no_grad"):
        language_model(
            inputs_embeds=embeds, past_key_values=DenoisingCache(2), position_ids=torch.arange(LENGTH)[None]
        )


def test_known_keys_stay_what_they_are():
    keys, values = torch.ones(1, 2, 5, 4), torch.zeros(1, 2, 5, 4)
    known = KnownKeys(keys, values)
    assert known.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0) == (keys, values)
    assert known.get_mask_sizes(3, 0) == (5, 0)
    assert known.get_query_offset() == 0
