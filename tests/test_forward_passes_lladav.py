"""Exact passes of the loop are whole, others run what is live, and no sample depends on its batch."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from transformers_lladav.forward_passes_lladav import LoopInputs, chosen_cache
from transformers_lladav.modeling_text_lladav import take_positions

CACHED = {
    "every second step": {"prompt_refresh_interval": 2},
    "every third step, blocks": {"prompt_refresh_interval": 3, "block_length": 4},
    "one prefill": {"prompt_refresh_interval": None},
    "one prefill, blocks": {"prompt_refresh_interval": None, "block_length": 4},
    "dual": {"prompt_refresh_interval": 3, "use_cache": "dual", "block_length": 4},
    "dual, one prefill": {"prompt_refresh_interval": None, "use_cache": "dual", "block_length": 4},
    "guidance": {"prompt_refresh_interval": 4, "guidance_scale": 1.5},
    "guidance, dual": {"prompt_refresh_interval": 2, "guidance_scale": 1.5, "use_cache": "dual", "block_length": 4},
    "suffix": {"prompt_refresh_interval": 3, "suffix_ids": torch.tensor([362, 71, 307])},
    "threshold": {"prompt_refresh_interval": 2, "threshold": 0.12, "block_length": 4},
    "threshold, one prefill": {"prompt_refresh_interval": None, "threshold": 0.12, "block_length": 4},
    "sampling": {"prompt_refresh_interval": 4, "temperature": 1.0},
    "the whole prompt remembered": {"prompt_refresh_interval": 4, "live_prompt_length": 0},
    "guidance, short end": {"prompt_refresh_interval": 4, "live_prompt_length": 3, "guidance_scale": 1.5},
}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# Where the answer stands


def inputs_of(attention_mask, slots, present, blind, tail=None):
    tail = torch.zeros_like(blind) if tail is None else tail
    return LoopInputs(torch.zeros(*blind.shape, 4), attention_mask, slots, present, blind, tail)


def test_what_is_live_is_all_but_prompt_and_padding():
    blind = torch.tensor([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]])
    slots, present = torch.tensor([[3, 4], [5, 0]]), torch.tensor([[True, True], [True, False]])
    inputs = inputs_of(mask, slots, present, blind)
    assert inputs.live_positions().tolist() == [[2, 3, 4], [4, 5, 5]]
    assert inputs.block_positions(slice(0, 2)).tolist() == [[3, 4], [5, 5]]
    tail = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]], dtype=torch.bool)
    longer = inputs_of(mask, slots, present, blind, tail)
    assert longer.live_positions().tolist() == [[1, 2, 3, 4], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("use_cache", "batch", "blocks", "chosen"),
    [("prompt", 32, 8, "prompt"), ("dual", 1, 1, "dual"), ("auto", 7, 8, "prompt"), ("auto", 8, 2, "dual"),
     ("auto", 32, 1, "prompt")],
)  # fmt: skip
def test_the_rule_of_auto(use_cache, batch, blocks, chosen):
    assert chosen_cache(use_cache, batch, blocks) == chosen


# The last layer


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("turns", [False, True])
def test_only_what_is_wanted_comes_out_of_the_last_layer(kernel, padded, turns, tiny_model):
    model = tiny_model(text_config={"num_key_value_heads": 2}).model.language_model
    model.set_attn_implementation(kernel)
    embeds = torch.randn(2, 10, 32, generator=torch.Generator().manual_seed(0))
    options = {}
    if padded:
        options["attention_mask"] = torch.tensor([[0, 0, *[1] * 8], [1] * 10])
    if turns:
        options["conversation_ids"] = torch.tensor([[0] * 5 + [1] * 5, [0] * 3 + [1] * 7])
    wanted = torch.tensor([[9, 4, 2], [0, 5, 5]])
    with torch.no_grad():
        whole = model(inputs_embeds=embeds, **options).last_hidden_state
        some = model(inputs_embeds=embeds, output_positions=wanted, **options).last_hidden_state
    torch.testing.assert_close(some, take_positions(whole, wanted), rtol=1e-5, atol=1e-5)


def test_the_last_layer_asks_for_no_more_than_the_block(tiny_model):
    """Queries and the feed-forward part of the last layer run on the block, keys and values on everything."""
    model = tiny_model()
    seen = {}
    for name in ("layers.0.mlp", "layers.1.self_attn.q_proj", "layers.1.mlp"):
        part = model.model.language_model.get_submodule(name)
        part.register_forward_pre_hook(lambda _, args, name=name: seen.setdefault(name, set()).add(args[0].shape[1]))
    model.generate(torch.arange(4, 24)[None], max_new_tokens=8, block_length=4, max_denoising_steps=2)
    assert seen == {"layers.0.mlp": {28}, "layers.1.self_attn.q_proj": {4}, "layers.1.mlp": {4}}


# No more than is read


class Widths(TorchDispatchMode):
    """Notes how many rows there are in every tensor as wide as the vocabulary."""

    def __init__(self, width):
        super().__init__()
        self.width, self.rows = width, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, list | tuple) else [result]:
            if function is torch.ops.aten.t.default or not isinstance(value, torch.Tensor):
                continue  # the head's weight lies on its side
            if value.ndim > 1 and value.shape[-1] == self.width:
                self.rows.add(value.numel() // self.width)
        return result


@pytest.mark.parametrize("options", [{}, {"prompt_refresh_interval": 2}, {"temperature": 1.0}, {"threshold": 0.1}])
def test_nothing_as_wide_as_the_vocabulary_has_more_rows_than_the_block(options, tiny_model):
    model = tiny_model(output_vocab_size=96)
    with Widths(96) as widths:
        model.generate(torch.arange(4, 40)[None], max_new_tokens=8, block_length=4, **options)
    assert widths.rows <= {1, 2, 3, 4}
    assert 4 in widths.rows


# Exact or not


def test_one_is_exact_and_the_default(mixed, model):
    _, batch = mixed
    options = {"max_new_tokens": 8, "block_length": 4, "return_dict_in_generate": True, "output_scores": True}
    default, one = model.generate(**batch, **options), model.generate(**batch, prompt_refresh_interval=1, **options)
    assert torch.equal(default.sequences, one.sequences)
    assert torch.equal(default.scores.nan_to_num(), one.scores.nan_to_num())
    assert torch.equal(one.whole_forwards, one.denoising_steps)


def test_an_interval_no_run_reaches_is_a_whole_pass_for_each_block(mixed, model):
    _, batch = mixed
    options = {"max_new_tokens": 8, "block_length": 4, "return_dict_in_generate": True, "output_scores": True}
    found = model.generate(**batch, prompt_refresh_interval=100, **options)
    blocks = -(-found.denoising_steps // 4)
    assert found.whole_forwards.tolist() == blocks.tolist()
    options["block_length"] = 8
    nine, none = (model.generate(**batch, prompt_refresh_interval=interval, **options) for interval in (9, None))
    assert torch.equal(nine.scores.nan_to_num(), none.scores.nan_to_num())
    assert none.whole_forwards.tolist() == [1] * 5


@pytest.mark.parametrize(("interval", "expected"), [(1, 8), (2, 4), (3, 4), (4, 2), (None, 1)])
def test_whole_passes_begin_every_block_and_are_repeated(interval, expected, model, processor):
    """Two blocks of four steps; with guidance twice as many passes."""
    inputs = processor(text="Hi", return_tensors="pt")
    options = {"max_new_tokens": 8, "block_length": 4, "eos_token_id": [], "return_dict_in_generate": True}
    for scale, views in ((1.0, 1), (1.5, 2)):
        found = model.generate(**inputs, prompt_refresh_interval=interval, guidance_scale=scale, **options)
        assert found.denoising_steps.tolist() == [8]
        assert found.whole_forwards.tolist() == [expected * views]


def test_what_is_remembered_is_an_approximation(mixed, model):
    """The first step is exact; in the second, the prompt does not know what the first one wrote."""
    _, batch = mixed
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, "max_denoising_steps": 2}
    options |= {"eos_token_id": [], "output_history": True}
    exact, cached = (model.generate(**batch, prompt_refresh_interval=each, **options) for each in (1, None))
    assert torch.equal(exact.history[0], cached.history[0])
    first = exact.history[0] != model.config.mask_token_id
    assert first.sum(dim=1).tolist() == [4] * 5
    torch.testing.assert_close(cached.scores[first], exact.scores[first], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(cached.scores[~first], exact.scores[~first], rtol=1e-3)


def test_a_live_pass_runs_the_answer_and_what_follows_it(model, processor):
    inputs = processor(text="Tell me a story.", return_tensors="pt")
    lengths = []
    layer = model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    prompt, suffix = inputs.input_ids.shape[1], torch.tensor([362, 71, 307])
    options = {"max_new_tokens": 8, "block_length": 4, "eos_token_id": [], "suffix_ids": suffix}
    try:
        for length in (0, 5):
            model.generate(**inputs, prompt_refresh_interval=4, live_prompt_length=length, **options)
        model.generate(**inputs, prompt_refresh_interval=4, use_cache="dual", **options)
    finally:
        handle.remove()
    whole = prompt + 8 + 3
    assert lengths == [whole, 11, 11, 11] * 2 + [whole, 16, 16, 16] * 2 + [whole, 4, 4, 4] * 2


# Batches


@pytest.mark.parametrize("name", CACHED)
def test_five_mixed_samples_give_the_answers_of_each_alone(name, mixed, model):
    alone, batch = mixed
    options = {"max_new_tokens": 8, "return_dict_in_generate": True, "output_scores": True, **CACHED[name]}
    together = model.generate(**batch, generator=generators(*range(5)), **options)
    for index, inputs in enumerate(alone):
        single = model.generate(**inputs, generator=generators(index), **options)
        assert together.answers[index].tolist() == single.answers[0].tolist()
        assert int(together.denoising_steps[index]) == int(single.denoising_steps[0])
        assert int(together.whole_forwards[index]) == int(single.whole_forwards[0])
        scores = pytest.approx(single.scores[0].tolist(), rel=1e-4, abs=1e-5, nan_ok=True)
        assert together.scores[index].tolist() == scores


def test_samples_that_end_early_leave_the_batch(mixed, model, processor):
    """Some are done long before others, and what is remembered of them is dropped."""
    _, batch = mixed
    sizes = []
    layer = model.model.language_model.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    try:
        model.generate(**batch, max_new_tokens=8, threshold=0.12, prompt_refresh_interval=None)
    finally:
        handle.remove()
    assert sizes[0] == 5
    assert min(sizes) < 5
    assert sizes == sorted(sizes, reverse=True)


HOLES = [
    {"role": "user", "content": "Say something."},
    {"role": "assistant", "content": "The [MASK:3] is [MASK:2] and so on."},
]
SHORT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A [MASK:2]!"}]


@pytest.mark.parametrize("options", [{}, {"use_cache": "dual", "block_length": 2}, {"guidance_scale": 1.5}])
@pytest.mark.parametrize("interval", [2, None])
@pytest.mark.parametrize("side", ["left", "right"])
def test_holes_are_filled_in_a_batch_as_alone(options, interval, side, model, processor):
    options = {"infill": True, "prompt_refresh_interval": interval, "return_dict_in_generate": True, **options}
    options["output_scores"] = True
    alone = [processor.infilling_inputs([chat], return_tensors="pt") for chat in (HOLES, SHORT)]
    batch = processor.infilling_inputs([HOLES, SHORT], return_tensors="pt", padding_side=side)
    together = model.generate(**batch, **options)
    for index, inputs in enumerate(alone):
        single = model.generate(**inputs, **options)
        assert together.answers[index].tolist() == single.answers[0].tolist()
        count = single.scores.shape[1]
        scores = pytest.approx(single.scores[0].tolist(), rel=1e-4, abs=1e-5, nan_ok=True)
        assert together.scores[index, :count].tolist() == scores
