"""`score()` gives likelihoods that can be worked out by hand, estimates near them, and refuses misfits."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformers_lladav import LladaVForMaskedDiffusion, asking
from transformers_lladav.scene_questions import ASKERS
from transformers_lladav.scoring_lladav import HEAD_POSITIONS, LladaVScoringMixin, LladaVScoringOutput, draw_masks
from transformers_lladav.shape_scenes import COLOURS, make_scene, render_scene

PROMPT = torch.tensor([[5, 17, 33, 8, 60]])
MASK, END, WRITABLE = 92, 2, 80


class Scoring(LladaVForMaskedDiffusion, LladaVScoringMixin):
    """The model with the method under test."""


@pytest.fixture
def sharp(tiny_model):
    """A small model whose predictions differ a lot from token to token."""

    def build(**changes):
        model = tiny_model(text_config={"initializer_range": 0.3}, **changes)
        scoring = Scoring(model.config).eval()
        scoring.load_state_dict(model.state_dict())
        return scoring

    return build


def score(model, *args, **kwargs):
    """`score` of a model that may not have it yet."""
    return LladaVScoringMixin.score(model, *args, **kwargs)


def subsets(length):
    """Every non-empty set of positions."""
    return [hidden for count in range(1, length + 1) for hidden in itertools.combinations(range(length), count)]


def log_probabilities(model, answer, hidden, prompt=PROMPT, **pictures):
    """Log-softmax over what may be written, (answer, tokens), by the public forward pass."""
    noised = [model.config.mask_token_id if place in hidden else token for place, token in enumerate(answer)]
    ids = torch.cat([prompt, torch.tensor([noised])], dim=1)
    with torch.no_grad():
        logits = model(input_ids=ids, **pictures).logits[0, prompt.shape[1] :]
    return logits[:, : model.config.output_vocab_size].double().log_softmax(dim=-1)


def pass_value(model, answer, hidden, **inputs):
    """L / l * log-likelihood of the hidden tokens."""
    rows = log_probabilities(model, answer, hidden, **inputs)
    return len(answer) / len(hidden) * sum(float(rows[place, answer[place]]) for place in hidden)


def exact_bound(model, answer, **inputs):
    """The mean over the numbers of hidden tokens of the mean over the masks of that number."""
    by_count = [
        [pass_value(model, answer, hidden, **inputs) for hidden in subsets(len(answer)) if len(hidden) == count]
        for count in range(1, len(answer) + 1)
    ]
    return sum(sum(values) / len(values) for values in by_count) / len(answer)


# By hand


def test_one_token_is_the_log_softmax_of_one_pass(sharp):
    model = sharp()
    rows = log_probabilities(model, [40], {0})
    for num_samples in (1, 2, 128):
        output = model.score(PROMPT, [[40]], append_eos=False, num_samples=num_samples)
        assert isinstance(output, LladaVScoringOutput)
        assert float(output.log_likelihoods) == pytest.approx(float(rows[0, 40]), rel=1e-5)
        assert output.num_forwards.tolist() == output.num_tokens.tolist() == [1]
        assert output.exact.tolist() == [True]
        assert output.standard_errors.tolist() == [0]


def test_the_probabilities_of_all_tokens_add_up_to_one(sharp):
    output = sharp().score(PROMPT, [[token] for token in range(WRITABLE)], append_eos=False)
    assert float(output.log_likelihoods.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_two_tokens_add_up_to_less_than_one_as_the_value_is_a_lower_bound(sharp):
    model = sharp(output_vocab_size=9)
    pairs = [list(pair) for pair in itertools.product(range(9), repeat=2)]
    total = float(model.score(PROMPT, pairs, append_eos=False, batch_size=64).log_likelihoods.exp().sum())
    assert 0.5 < total < 1


@pytest.mark.parametrize("answer", [[40, 7], [7, 7], [11, 40, 66], [9, 9, 2, 31]])
def test_few_tokens_are_exact_by_every_mask(answer, sharp):
    model = sharp()
    output = model.score(PROMPT, [answer], append_eos=False, num_samples=2 ** len(answer) - 1)
    assert float(output.log_likelihoods) == pytest.approx(exact_bound(model, answer), rel=1e-5)
    assert float(output.log_likelihoods_per_token) == pytest.approx(exact_bound(model, answer) / len(answer), rel=1e-5)
    assert output.exact.tolist() == [True]
    assert output.standard_errors.tolist() == [0]
    assert output.num_forwards.tolist() == [2 ** len(answer) - 1]


def test_the_bound_is_the_mean_over_all_orders_of_writing_the_answer(sharp):
    # Writing in one order has the likelihood of a product of conditionals; equation 6 averages its logarithm.
    model, answer = sharp(), [11, 40, 66]
    orders = list(itertools.permutations(range(3)))
    logs = [
        float(log_probabilities(model, answer, set(order[step:]))[order[step], answer[order[step]]])
        for order in orders
        for step in range(3)
    ]
    output = model.score(PROMPT, [answer], append_eos=False)
    assert float(output.log_likelihoods) == pytest.approx(sum(logs) / len(orders), rel=1e-5)


@pytest.mark.parametrize("num_samples", [1, 2, 5, 128])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.5])
def test_a_zero_head_gives_minus_l_ln_v(num_samples, guidance_scale, sharp):
    model = sharp()
    torch.nn.init.zeros_(model.lm_head.weight)
    answers = [list(range(10, 10 + length)) for length in (1, 2, 3, 5, 9, 20)]
    output = model.score(PROMPT, answers, num_samples=num_samples, guidance_scale=guidance_scale)
    lengths = [2, 3, 4, 6, 10, 21]  # with the end token
    assert output.num_tokens.tolist() == lengths
    expected = torch.tensor([-length * math.log(WRITABLE) for length in lengths], dtype=torch.float64)
    torch.testing.assert_close(output.log_likelihoods, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        output.log_likelihoods_per_token, torch.full_like(expected, -math.log(WRITABLE)), rtol=1e-12, atol=0
    )
    assert output.num_forwards.tolist() == [
        (1 if guidance_scale == 1 else 2) * min(num_samples, 2**length - 1) for length in lengths
    ]


def test_guidance_weighs_the_prompt_against_a_masked_one(sharp):
    model, token, scale = sharp(), 40, 1.7
    with torch.no_grad():
        seen, blind = (
            model(input_ids=torch.cat([prompt, torch.tensor([[MASK]])], dim=1)).logits[0, -1, :WRITABLE].double()
            for prompt in (PROMPT, torch.full_like(PROMPT, MASK))
        )
    expected = (blind + scale * (seen - blind)).log_softmax(dim=0)[token]
    output = model.score(PROMPT, [[token], [3, 4]], append_eos=False, guidance_scale=scale)
    assert float(output.log_likelihoods[0]) == pytest.approx(float(expected), rel=1e-5)
    assert output.num_forwards.tolist() == [2, 6]
    off = model.score(PROMPT, [[token]], append_eos=False)
    assert float(off.log_likelihoods) == pytest.approx(float(seen.log_softmax(dim=0)[token]), rel=1e-5)


# Estimates


def test_estimates_come_near_the_exact_value(sharp):
    model, answer = sharp(), [11, 40, 66, 9, 23, 51, 30, 5]
    exact = model.score(PROMPT, [answer], append_eos=False, num_samples=255, batch_size=64)
    assert exact.exact.tolist() == [True]
    estimates = [model.score(PROMPT, [answer], append_eos=False, num_samples=32, seed=seed) for seed in range(10)]
    for estimate in estimates:
        assert not estimate.exact.any()
        assert estimate.num_forwards.tolist() == [32]
        off = float(estimate.log_likelihoods - exact.log_likelihoods)
        assert 0 < abs(off) < 4 * float(estimate.standard_errors)


def table_of_values(length, seed):
    """A made-up value per mask that depends on the number of hidden tokens, on which they are, and on chance."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(length, generator=generator, dtype=torch.float64)
    return {
        hidden: -20
        + 8 * len(hidden) / length
        + float(weights[list(hidden)].mean())
        + float(torch.randn((), generator=generator))
        for hidden in subsets(length)
    }


def looked_up(values, masks):
    """The value of every mask, (passes,)."""
    return torch.tensor([values[tuple(row.nonzero()[:, 0].tolist())] for row in masks.hidden], dtype=torch.float64)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 6, 9, 12, 25, 40, 62])
def test_masks_are_drawn_without_bias_and_the_standard_error_is_that_of_the_mean(num_samples):
    length, repeats = 6, 300
    values = table_of_values(length, seed=3)
    exact = sum(
        sum(value for hidden, value in values.items() if len(hidden) == count) / math.comb(length, count)
        for count in range(1, length + 1)
    ) / length  # fmt: skip
    means, errors = [], []
    for seed in range(repeats):
        masks = draw_masks(length, num_samples, seed)
        found = looked_up(values, masks)
        means.append(float(masks.weights @ found))
        errors.append(masks.standard_error(found))
    spread = torch.tensor(means).std()
    assert abs(sum(means) / repeats - exact) < 4 * spread / math.sqrt(repeats)
    if num_samples == 1:
        assert all(math.isnan(error) for error in errors)
    else:
        stated = torch.tensor(errors).square().mean().sqrt()
        # With fewer passes than tokens, neighbours differ by what is no error: the statement is a careful one.
        assert 0.75 < stated / spread < (1.5 if num_samples >= length else 2.5)


def test_spreading_the_numbers_of_hidden_tokens_is_sharper_than_drawing_them():
    length, num_samples = 6, 30
    values = table_of_values(length, seed=3)
    rng = random.Random(0)
    drawn = []
    for _ in range(400):
        masks = [tuple(sorted(rng.sample(range(length), rng.randint(1, length)))) for _ in range(num_samples)]
        drawn.append(sum(values[mask] for mask in masks) / num_samples)
    spread = [draw_masks(length, num_samples, seed) for seed in range(400)]
    means = torch.tensor([float(masks.weights @ looked_up(values, masks)) for masks in spread])
    assert means.std() < 0.5 * torch.tensor(drawn).std()


@given(st.integers(1, 9), st.integers(1, 300), st.integers(0, 2**31))
def test_masks_are_different_and_every_number_of_hidden_tokens_counts_the_same(length, num_samples, seed):
    masks = draw_masks(length, num_samples, seed)
    rows = masks.hidden.tolist()
    assert len(set(map(tuple, rows))) == len(rows) == min(num_samples, 2**length - 1)
    assert masks.exact == (num_samples >= 2**length - 1)
    counts = masks.hidden.sum(dim=1)
    assert counts.min() >= 1
    numbers = min(num_samples, length)
    assert counts.unique().numel() == numbers
    for count in counts.unique():
        assert float(masks.weights[counts == count].sum()) == pytest.approx(1 / numbers)
    assert torch.equal(masks.hidden, draw_masks(length, num_samples, seed).hidden)


def test_shares_are_even_where_there_are_masks_enough():
    counts = draw_masks(20, 80, 0).hidden.sum(dim=1)
    # One mask hides all 20; the 3 passes it leaves go to others.
    assert counts.bincount().tolist() == [0, *[4] * 8, *[5] * 3, *[4] * 8, 1]


# What a score depends on


def test_the_seed_decides(sharp):
    model, answer = sharp(), [list(range(20, 32))]
    first, again, other = (
        float(model.score(PROMPT, answer, num_samples=16, seed=seed).log_likelihoods) for seed in (0, 0, 1)
    )
    assert first == again != other
    state = torch.get_rng_state()
    model.score(PROMPT, answer, num_samples=16)
    assert torch.equal(torch.get_rng_state(), state)


def test_exact_values_do_not_depend_on_the_seed(sharp):
    model = sharp()
    values = [float(model.score(PROMPT, [[4, 9, 12]], seed=seed).log_likelihoods) for seed in (0, 1)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


MIXED = [[40], list(range(20, 32)), [7, 8], [40], [9, 30, 31, 55, 61, 12, 44, 71, 70]]


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_neighbours_and_batch_size_change_nothing(guidance_scale, sharp):
    model = sharp()
    settings = {"num_samples": 10, "guidance_scale": guidance_scale}
    alone = torch.cat([model.score(PROMPT, [answer], **settings).log_likelihoods for answer in MIXED])
    errors = torch.cat([model.score(PROMPT, [answer], **settings).standard_errors for answer in MIXED])
    assert (errors > 0).tolist() == [False, True, False, False, True]
    for batch_size in (1, 3, 7, 1000):
        together = model.score(PROMPT, MIXED, batch_size=batch_size, **settings)
        torch.testing.assert_close(together.log_likelihoods, alone, rtol=2e-6, atol=0)
        torch.testing.assert_close(together.standard_errors, errors, rtol=1e-3, atol=0)
    backwards = model.score(PROMPT, MIXED[::-1], **settings)
    torch.testing.assert_close(backwards.log_likelihoods, alone.flip(0), rtol=2e-6, atol=0)
    assert float(backwards.log_likelihoods[backwards.best]) == pytest.approx(float(alone.max()), rel=2e-6)


def test_padding_of_the_prompt_changes_nothing(sharp):
    model = sharp()
    expected = model.score(PROMPT, MIXED, num_samples=10).log_likelihoods
    full = model.score(PROMPT, MIXED, num_samples=10, attention_mask=torch.ones_like(PROMPT)).log_likelihoods
    assert torch.equal(full, expected)
    filler = torch.full((1, 3), 3)
    for parts in ([filler, PROMPT], [PROMPT, filler], [filler, PROMPT, filler]):
        mask = torch.cat([torch.full_like(part, int(part is PROMPT)) for part in parts], dim=1)
        padded = model.score(torch.cat(parts, dim=1), MIXED, num_samples=10, attention_mask=mask)
        assert torch.equal(padded.log_likelihoods, expected)


def test_rows_are_masked_only_where_answers_of_different_length_share_a_batch(sharp):
    model, masks = sharp(), []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    model.score(PROMPT, [[4, 9], [5, 7]], append_eos=False)
    assert masks == [None]
    model.score(PROMPT, [[4, 9], [5]], append_eos=False)
    assert masks[1].tolist() == [[1] * 5 + [1, 0]] + [[1] * 5 + [1, 1]] * 3


def test_the_head_sees_hidden_positions_only_and_not_too_many_at_once(sharp):
    model, seen = sharp(), []
    model.lm_head.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    model.score(PROMPT, [[4, 9]], append_eos=False)
    assert seen == [(1, 1 + 1 + 2, 32)]
    seen.clear()
    answer = list(range(4, 70))
    model.score(PROMPT, [answer], append_eos=False, num_samples=8, batch_size=8)
    hidden = int(draw_masks(len(answer), 8).hidden.sum())
    assert hidden > HEAD_POSITIONS
    assert [shape[1] for shape in seen[:-1]] == [HEAD_POSITIONS] * (hidden // HEAD_POSITIONS)
    assert sum(shape[1] for shape in seen) == hidden


def test_nothing_is_suppressed(sharp):
    model = sharp()
    assert 3 in model.config.suppressed_token_ids
    expected = float(log_probabilities(model, [3], {0})[0, 3])
    assert float(model.score(PROMPT, [[3]], append_eos=False).log_likelihoods) == pytest.approx(expected, rel=1e-5)


def test_no_gradients_and_the_model_stays_as_it_is(sharp):
    model = sharp().train()
    assert not model.score(PROMPT, [[3]]).log_likelihoods.requires_grad
    assert model.training


# Answers


def test_the_end_token_is_appended_once(sharp):
    model = sharp()
    bare = model.score(PROMPT, [[4, 9], [4, 9, END], [4]], append_eos=False).log_likelihoods
    ended = model.score(PROMPT, [[4, 9], [4, 9, END], [4, END]])
    assert ended.num_tokens.tolist() == [3, 3, 2]
    assert float(ended.log_likelihoods[0]) == pytest.approx(float(bare[1]), rel=1e-6)
    assert float(ended.log_likelihoods[1]) == pytest.approx(float(bare[1]), rel=1e-6)
    assert float(ended.log_likelihoods[0]) == pytest.approx(exact_bound(model, [4, 9, END]), rel=1e-5)


def test_the_first_of_several_end_tokens_is_appended(sharp):
    model = sharp()
    expected = model.score(PROMPT, [[4, 7]], append_eos=False).log_likelihoods
    model.config.text_config.eos_token_id = [7, 2]
    torch.testing.assert_close(model.score(PROMPT, [[4]]).log_likelihoods, expected, rtol=1e-6, atol=0)


def test_lists_tensors_and_texts_are_the_same(model, processor):
    texts = ["Yes, it is.", "No"]
    ids = [processor.tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    prompt = processor.tokenizer("Is it?", return_tensors="pt").input_ids
    forms = [texts, ids, tuple(ids), [torch.tensor(row, dtype=torch.int32) for row in ids], [texts[0], ids[1]]]
    found = [score(model, prompt, form, tokenizer=processor.tokenizer, num_samples=6) for form in forms]
    assert found[0].num_tokens.tolist() == [len(row) + 1 for row in ids]
    for output in found[1:]:
        assert torch.equal(output.log_likelihoods, found[0].log_likelihoods)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_pictures_and_videos_are_encoded_once_and_seen(kind, sharp, monkeypatch):
    model, encoded, answers = sharp(), [], [[40, 57], [6]]
    pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    if kind == "image":
        given = {"pixel_values": pixels[:1], "image_sizes": torch.tensor([[56, 56]])}
        token, tokens = model.config.image_token_id, len(model.get_image_features(**given).pooler_output[0])
    else:
        given = {"pixel_values_videos": pixels, "video_frame_counts": torch.tensor([2])}
        token, tokens = model.config.video_token_id, len(model.get_video_features(**given).pooler_output[0])
    prompt = torch.cat([PROMPT[:, :2], torch.full((1, tokens), token), PROMPT[:, 2:]], dim=1)
    expected = [exact_bound(model, answer, prompt=prompt, **given) for answer in answers]
    encode = model.model.encode_tiles
    monkeypatch.setattr(model.model, "encode_tiles", lambda tiles: encoded.append(len(tiles)) or encode(tiles))
    output = model.score(prompt, answers, append_eos=False, batch_size=2, use_cache=False, **given)
    assert encoded == [len(next(iter(given.values())))]
    assert output.log_likelihoods.tolist() == pytest.approx(expected, rel=1e-5)
    changed = {name: value.flip(-1) if "pixel" in name else value for name, value in given.items()}
    other = model.score(prompt, answers, append_eos=False, **changed)
    assert not torch.allclose(output.log_likelihoods, other.log_likelihoods, rtol=1e-3)


# Errors


@pytest.mark.parametrize(
    ("answers", "settings", "message"),
    [
        ("red", {}, r"answers='red' is one text; pass a list of answers"),
        ([], {}, "answers is empty; pass at least one answer"),
        ([[4], []], {}, r"answers\[1\] has no tokens; an answer needs at least one"),
        (["red"], {}, r"answers\[0\]='red' is text: pass tokenizer=processor.tokenizer as well"),
        ([[4, 92]], {}, r"answers\[0\] holds mask_token_id=92, .*; pass finished answers"),
        ([[4, 80]], {}, r"holds token 80, which the model cannot write: .* less than output_vocab_size=80"),
        ([[-1]], {}, r"holds token -1"),
        ([[1.5]], {}, r"answers\[0\] has shape \(1,\) and dtype torch.float32; give \(tokens,\) whole numbers"),
        ([[[4, 5]]], {}, r"has shape \(1, 2\)"),
        ([[4]], {"num_samples": 0}, "num_samples=0 must be a whole number of at least 1"),
        ([[4]], {"batch_size": 1.5}, r"batch_size=1.5 must be a whole number of at least 1"),
        ([[4]], {"seed": "x"}, "seed='x' must be a whole number"),
        ([[4]], {"seed": 2**64}, f"seed={2**64} must be a whole number from {-(2**63)} to {2**64 - 1}"),
        ([[4]], {"guidance_scale": math.inf}, "guidance_scale=inf must be finite"),
        ([[4]], {"guidance_scale": -1}, "guidance_scale=-1 must be a number of at least 0; 1 is off"),
        ([[4]], {"attention_mask": torch.ones(1, 3)}, r"attention_mask has shape \(1, 3\) and input_ids \(1, 5\)"),
        (
            [[4], [5] * 507],
            {},
            "the prompt has 5 tokens and the longest answer 508, but the model has 512 positions; shorten",
        ),
    ],
)
def test_values_that_break_a_rule_are_refused(answers, settings, message, sharp):
    with pytest.raises(ValueError, match=message):
        sharp().score(PROMPT, answers, **settings)


def test_a_text_without_tokens_is_refused(sharp, tokenizer):
    with pytest.raises(ValueError, match=r"answers\[0\]='' has no tokens"):
        sharp().score(PROMPT, [""], tokenizer=tokenizer)


def test_prompts_come_one_at_a_time(sharp):
    model = sharp()
    with pytest.raises(ValueError, match="input_ids hold 2 prompts; score one prompt at a time"):
        model.score(PROMPT.repeat(2, 1), [[4]])
    with pytest.raises(ValueError, match=r"input_ids must be given as \(1, prompt\)"):
        model.score(PROMPT[0], [[4]])
    with pytest.raises(ValueError, match=r"input_ids must be given as \(1, prompt\)"):
        model.score(None, [[4]])


def test_an_end_token_is_needed_to_append_it(sharp):
    model = sharp()
    model.config.text_config.eos_token_id = None
    with pytest.raises(ValueError, match=r"text_config\.eos_token_id; pass append_eos=False"):
        model.score(PROMPT, [[4]])
    model.score(PROMPT, [[4]], append_eos=False)


def test_unknown_arguments_are_refused_and_what_processors_pass_along_is_not(sharp):
    model = sharp()
    with pytest.raises(TypeError, match=r"score\(\) does not take 'num_sample'; did you mean 'num_samples'\?"):
        model.score(PROMPT, [[4]], num_sample=4)
    with pytest.raises(TypeError, match="did you mean 'pixel_values'"):
        model.score(PROMPT, [[4]], pixel_value=None)
    with pytest.raises(TypeError, match=r"score\(\) does not take 'xyz'$"):
        model.score(PROMPT, [[4]], xyz=1)
    with pytest.raises(TypeError, match="does not take 'generator': pass seed"):
        model.score(PROMPT, [[4]], generator=torch.Generator())
    model.score(PROMPT, [[4]], token_type_ids=torch.zeros_like(PROMPT), pixel_values=None)


def test_padding_does_not_count_as_prompt_and_the_last_position_may_be_used(sharp):
    model = sharp()
    long = PROMPT.repeat(1, 102)  # 510 tokens: two are left
    assert model.score(long, [[4]]).num_tokens.tolist() == [2]
    mask = torch.ones_like(long)
    mask[0, :100] = 0
    model.score(long, [[4] * 20], attention_mask=mask, num_samples=2)
    with pytest.raises(ValueError, match="the prompt has 510 tokens and the longest answer 21"):
        model.score(long, [[4] * 20])


# A trained model


@pytest.mark.parametrize("append_eos", [True, False])
def test_the_bundled_checkpoint_ranks_colours(append_eos):
    assistant = asking.load(device="cpu")
    colours = list(COLOURS)
    asked = right = 0
    for index in range(40):
        scene = make_scene("test", index)
        question = ASKERS["colour"](scene, random.Random(index))
        if question is None or asked == 20:
            continue
        asked += 1
        content = [{"type": "image", "image": render_scene(scene, 96)}, {"type": "text", "text": question.text}]
        inputs = assistant.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = score(
            assistant.model, **inputs, answers=colours, tokenizer=assistant.processor.tokenizer, append_eos=append_eos
        )
        assert output.exact.all()
        right += colours[output.best] == question.answer
    assert asked == 20
    assert right >= 18  # 20 when this was written; chance is 3
