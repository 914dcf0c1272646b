"""What the product is measured against does what it is said to do."""

import pytest
import torch

import parity
from transformers_lladav.bench_loops import autoregressive_model, official_loop, write_autoregressively

END = 2  # of the tiny model


@pytest.mark.parametrize(
    "lengths",
    [(8, 8, 8), (8, 4, 4), (16, 8, 4)],
    ids=["a token per step", "two blocks", "four tokens per step"],
)
def test_the_official_loop_writes_what_generate_writes(lengths, tiny_model):
    """201 random prompts in all; models are more and less sure."""
    model = tiny_model()
    model.generation_config.eos_token_id = END
    tokens, block, steps = lengths
    options = {"max_new_tokens": tokens, "block_length": block, "max_denoising_steps": steps}
    generator = torch.Generator().manual_seed(0)
    stopped = 0
    for number in range(67):
        with torch.no_grad():
            model.lm_head.weight.normal_(0, (0.02, 0.5, 2.0)[number % 3], generator=generator)
            model.lm_head.weight[END] *= 2  # so that some answers end
        length = int(torch.randint(1, 40, (), generator=generator))
        prompt = torch.randint(4, 80, (1, length), generator=generator)
        found = official_loop(model, prompt, **options)
        output = model.generate(prompt, return_dict_in_generate=True, **options)
        answer = output.answers[0]
        assert found[: len(answer)].tolist() == answer.tolist()
        if output.stopped[0]:
            stopped += 1
            assert int(found[len(answer)]) in model.generation_config.stop_token_ids
        else:
            assert len(answer) == len(found) == tokens
    assert stopped > 5


def test_the_official_loop_is_for_one_prompt(tiny_model):
    with pytest.raises(ValueError, match="2 prompts were given; the official code answers one at a time"):
        official_loop(tiny_model(), torch.ones(2, 3, dtype=torch.long), 4, 4, 4)


def is_plain(case):
    """Whether a recorded run is of the kind that the loop is for, and did nothing arbitrary."""
    args = case["args"]
    usual = (
        args["gen_length"] <= 32
        and args["steps"] <= 16  # every step takes a whole pass with all logits
        and args["temperature"] == args["cfg_scale"] == 0
        and args["remasking"] == "low_confidence"
    )
    stops = args["stopping_criteria"] in (None, ["<|eot_id|>"])
    prompt = parity.by_id("prompts", "prompts")[case["prompt"]]
    text = not prompt.get("images") and not prompt.get("video") and parity.MASK not in prompt["input_ids"]
    return usual and stops and text and not args["generation_suffix"] and not case["minus_inf_picks"]


PLAIN = {name: case for name, case in parity.by_id("generate", "cases").items() if is_plain(case)}


def test_there_are_many_recorded_runs_to_compare():
    assert len(PLAIN) >= 8


@pytest.mark.parametrize("name", PLAIN)
def test_the_official_loop_writes_what_the_official_code_wrote(name, model, processor, monkeypatch):
    case = PLAIN[name]
    stops = [parity.EOT] if case["args"]["stopping_criteria"] else []
    monkeypatch.setattr(model.generation_config, "eos_token_id", stops)
    inputs = parity.model_inputs(processor, parity.by_id("prompts", "prompts")[case["prompt"]])
    args = {"max_new_tokens": "gen_length", "block_length": "block_length", "max_denoising_steps": "steps"}
    lengths = {ours: case["args"][theirs] for ours, theirs in args.items()}
    found = official_loop(model, inputs.input_ids, **lengths).tolist()
    expected = case["output_ids"]
    assert len(expected) <= len(found)
    assert found[: len(expected)] == expected


def parameters(module):
    return sum(weight.numel() for weight in module.parameters())


def test_the_twin_has_the_sizes_of_the_language_model_and_writes_all_tokens(tiny_model):
    config = tiny_model(text_config={"num_key_value_heads": 2}).config.text_config
    twin = autoregressive_model(config, "cpu", torch.float32)
    ours = tiny_model(text_config={"num_key_value_heads": 2}).model.language_model.layers
    assert parameters(twin.model.layers) == parameters(ours)
    passes = []
    twin.model.register_forward_pre_hook(
        lambda _, args, given: passes.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    written = write_autoregressively(twin, torch.randint(4, 80, (2, 9)), 5)
    assert written.shape == (2, 5)
    assert passes == [9, 1, 1, 1, 1]
