"""Commit rules, constraints, early ends and holes give each sample of a mixed batch what it gets alone."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MaxTimeCriteria,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)
from transformers.generation import MaxLengthCriteria

from transformers_lladav.commit_rules_lladav import ConfidenceThreshold, FixedSchedule, most_confident
from transformers_lladav.constraints_lladav import AnswerChoices

MASK, END, PAD = 92, 2, 3  # of the tiny model
RULES = {
    "fixed": {"max_denoising_steps": 4},
    "threshold": {"threshold": 0.12},
    "threshold, few steps": {"threshold": 0.5, "max_denoising_steps": 3},
    "factor": {"factor": 2.5},
    "entropy bound": {"entropy_bound": 10.0},
    "margin": {"remasking": "margin", "max_denoising_steps": 4},
    "threshold on the margin": {"remasking": "margin", "threshold": 0.04},
    "entropy": {"remasking": "entropy", "max_denoising_steps": 4},
    "stable and confident": {"stability_threshold": 1, "confidence_threshold": 6.0},
    "no repeated pairs": {"no_repeat_ngram_size": 1, "max_denoising_steps": 2},
    "random": {"remasking": "random", "max_denoising_steps": 4},
    "sampling": {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "max_denoising_steps": 4},
}
ADAPTIVE = {"threshold", "factor", "entropy bound", "threshold on the margin", "stable and confident"}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# Guidance comes before any rule, so that a rule of each kind is enough.
@pytest.mark.parametrize(
    ("name", "guidance"),
    [*((name, 1.0) for name in RULES), *((name, 1.5) for name in ("fixed", "threshold", "sampling"))],
)
def test_five_mixed_samples_give_the_answers_of_each_alone_under_every_rule(name, guidance, mixed, model):
    alone, batch = mixed
    options = {"max_new_tokens": 8, "block_length": 4, "return_dict_in_generate": True, "output_scores": True}
    options |= {"guidance_scale": guidance, **RULES[name]}
    if options.get("max_denoising_steps") == 3 or guidance != 1.0:
        options["block_length"] = 8  # one block, which halves the forward passes of the fixed schedules
    together = model.generate(**batch, generator=generators(*range(5)), **options)
    for index, inputs in enumerate(alone):
        single = model.generate(**inputs, generator=generators(index), **options)
        assert together.answers[index].tolist() == single.answers[0].tolist()
        assert int(together.denoising_steps[index]) == int(single.denoising_steps[0])
        assert together.finish_reasons[index] == single.finish_reasons[0]
        scores = pytest.approx(single.scores[0].tolist(), rel=1e-4, abs=1e-5, nan_ok=True)
        assert together.scores[index].tolist() == scores
    if name in ADAPTIVE and guidance == 1.0:
        assert len(set(together.denoising_steps.tolist())) > 1, "the rule treats all samples alike: choose another"
        assert together.denoising_steps.min() < 8


# --- properties, on a small random model -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(request):
    import conftest
    from transformers_lladav import LladaVForMaskedDiffusion

    torch.manual_seed(0)
    built = LladaVForMaskedDiffusion(conftest.tiny_config()).eval()
    with torch.no_grad():
        built.lm_head.weight.mul_(40)  # so that confidences spread over 0..1
    return built


RULE_SETTINGS = st.one_of(
    st.just({}),
    st.floats(0, 1).map(lambda value: {"threshold": value}),
    st.floats(0.1, 5).map(lambda value: {"factor": value}),
    st.floats(0.01, 20).map(lambda value: {"entropy_bound": value}),
    st.sampled_from(["random", "margin", "entropy"]).map(lambda value: {"remasking": value}),
    st.floats(0.5, 3).map(lambda value: {"temperature": value, "top_k": 5}),
    st.integers(0, 3).map(lambda value: {"stability_threshold": value}),
    st.integers(1, 3).map(lambda value: {"no_repeat_ngram_size": value}),
)


@st.composite
def runs(draw):
    block = draw(st.integers(1, 6))
    blocks = draw(st.integers(1, 3))
    batch = draw(st.integers(1, 3))
    width = draw(st.integers(1, 7))
    rows = draw(st.lists(st.lists(st.integers(4, 79), min_size=width, max_size=width), min_size=batch, max_size=batch))
    padding = draw(st.lists(st.integers(0, width - 1), min_size=batch, max_size=batch))
    options = {
        "max_new_tokens": block * blocks,
        "block_length": block,
        "max_denoising_steps": blocks * draw(st.integers(1, block)),
        "suffix_ids": torch.tensor(draw(st.lists(st.integers(4, 79), max_size=2)), dtype=torch.long),
        "eos_token_id": draw(st.sampled_from([None, list(range(4, 20))])),
        **draw(RULE_SETTINGS),
    }
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in padding])
    return torch.tensor(rows), mask, options


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs())
def test_what_holds_for_every_run(small, run):
    prompt, mask, options = run
    steps = []
    output = small.generate(
        prompt,
        attention_mask=mask,
        callback_on_step_end=steps.append,
        generator=torch.Generator().manual_seed(0),
        return_dict_in_generate=True,
        output_history=True,
        output_scores=True,
        **options,
    )
    canvas, block = options["max_new_tokens"], options["block_length"]
    width, suffix = prompt.shape[1], options["suffix_ids"]
    assert torch.equal(output.sequences[:, :width], prompt)
    before = torch.full((len(prompt), canvas), MASK)
    for step, after in zip(steps, output.history, strict=True):
        assert torch.equal(step.tokens, after)
        written = before != MASK
        assert torch.equal(after[written], before[written]), "a committed token changed"
        new = (after != MASK) & ~written
        marked = torch.zeros_like(new)
        marked[step.samples, step.start : step.start + step.committed.shape[1]] = step.committed
        assert torch.equal(new, marked)
        assert new[step.samples].any(dim=1).all(), "a step wrote nothing"
        assert step.block * block == step.start
        before = after
    assert torch.equal(output.scores.isnan(), before == MASK)
    for index, answer in enumerate(output.answers):
        assert MASK not in answer.tolist()
        end = width + len(answer)
        assert torch.equal(output.sequences[index, width:end], answer)
        assert torch.equal(output.sequences[index, end : end + len(suffix)], suffix)
        assert (output.sequences[index, end + len(suffix) :] == PAD).all()
        stopped = output.finish_reasons[index] == "stop"
        assert stopped == bool(output.stopped[index]) == (len(answer) < canvas)
        if stopped:
            assert int(before[index, len(answer)]) in options["eos_token_id"]
        taken = sum(index in step.samples.tolist() for step in steps)
        assert taken == int(output.denoising_steps[index])
        assert float(output.tokens_per_forward[index]) == pytest.approx((len(answer) + stopped) / taken)
        if "no_repeat_ngram_size" in options:
            size = options["no_repeat_ngram_size"]
            ngrams = [tuple(answer[at : at + size].tolist()) for at in range(len(answer) - size + 1)]
            assert len(ngrams) == len(set(ngrams))
        else:
            assert taken <= options["max_denoising_steps"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs())
def test_the_counts_of_each_step_are_those_of_the_rule(small, run):
    prompt, mask, options = run
    # Entropies are not part of a step: their rule is compared with a reference in its own tests. Ends of blocks and
    # constraints change the counts on purpose.
    assume(not {"entropy_bound", "stability_threshold", "no_repeat_ngram_size"} & set(options))
    options, steps = {**options, "eos_token_id": None}, []
    small.generate(
        prompt,
        attention_mask=mask,
        callback_on_step_end=steps.append,
        generator=generators(*range(len(prompt))),
        **options,
    )
    per_block = options["max_denoising_steps"] // (options["max_new_tokens"] // options["block_length"])
    for step in steps:
        share, extra = divmod(options["block_length"], per_block)
        for confidence, committed in zip(step.confidence.tolist(), step.committed, strict=True):
            surest = sorted((value for value in confidence if value > 0), reverse=True)
            needed = -(-len(surest) // (per_block - step.step))
            if "threshold" in options:
                expected = max(needed, sum(value >= options["threshold"] for value in surest))
            elif "factor" in options:
                fitting = [n for n, p in enumerate(surest, 1) if (n + 1) * (1 - p) < options["factor"]]
                expected = max([needed, *fitting])
            else:
                expected = share + (step.step < extra)
            assert int(committed.sum()) == expected


PROMPT = torch.tensor([[5, 9, 30, 41]])


def run(small, **options):
    options = {"max_new_tokens": 8, "eos_token_id": None, "return_dict_in_generate": True, **options}
    return small.generate(PROMPT, **options)


def test_a_threshold_of_one_is_the_loop_with_a_token_per_step_and_zero_is_all_at_once(small):
    exact = run(small)
    assert run(small, threshold=1.0).answers[0].tolist() == exact.answers[0].tolist()
    at_once = run(small, max_denoising_steps=1)
    for options in ({"threshold": 0.0}, {"factor": 1e9}, {"entropy_bound": 1e9}, {"confidence_threshold": 1e9}):
        output = run(small, **options)
        assert output.answers[0].tolist() == at_once.answers[0].tolist()
        assert output.denoising_steps.tolist() == [1]
        assert output.tokens_per_forward.tolist() == [8.0]


def test_a_rule_as_an_object_equals_its_setting_and_replaces_the_one_of_the_configuration(small):
    named = run(small, threshold=0.4)
    assert run(small, sampler_config=ConfidenceThreshold(0.4)).answers[0].tolist() == named.answers[0].tolist()
    from transformers_lladav import LladaVGenerationConfig

    base = LladaVGenerationConfig(max_new_tokens=8, factor=2.0, return_dict_in_generate=True)
    replaced = small.generate(PROMPT, generation_config=base, threshold=0.4, eos_token_id=None)
    assert replaced.denoising_steps.tolist() == named.denoising_steps.tolist()
    fixed = small.generate(PROMPT, generation_config=base, sampler_config=FixedSchedule(), eos_token_id=None)
    assert fixed.denoising_steps.tolist() == [8]


def test_a_rule_of_ones_own_needs_only_select(small):
    class LeastConfident:
        remasking = ("low_confidence",)
        needs_entropy = False

        def select(self, offer):
            return most_confident(-offer.confidence, offer.competing, offer.needed)

    steps = []
    run(small, sampler_config=LeastConfident(), callback_on_step_end=steps.append)
    for step in steps:
        masked = step.confidence[0] > 0
        assert step.confidence[0][step.committed[0]].item() == step.confidence[0][masked].min().item()


def test_scores_are_the_confidences_at_commit(small):
    steps = []
    output = run(small, max_denoising_steps=4, output_scores=True, callback_on_step_end=steps.append)
    expected = torch.zeros(8, dtype=torch.float64)
    for step in steps:
        expected[step.committed[0]] = step.confidence[0][step.committed[0]]
    assert torch.equal(output.scores[0], expected)
    assert run(small).scores is None


def test_a_stop_string_may_straddle_a_block_border(small, tokenizer):
    exact = run(small, block_length=4).answers[0].tolist()

    class Pieces:
        def __call__(self, text, add_special_tokens):
            assert (text, add_special_tokens) == ("end", False)
            return type("Encoded", (), {"input_ids": exact[3:5]})

    output = run(small, block_length=4, stop_strings=["end"], tokenizer=Pieces())
    assert output.answers[0].tolist() == exact[:3]
    assert output.finish_reasons == ["stop_string"]


def test_a_streamer_of_a_batch_sees_nothing_of_a_stop(small):
    free = small.generate(torch.cat([PROMPT, PROMPT + 1]), max_new_tokens=6, eos_token_id=None)[:, 4:].tolist()

    class Blocks:
        shown = []

        def put(self, value):
            self.shown.append(value.tolist())

        def end(self):
            self.shown.append("end")

    def pieces(text, add_special_tokens):
        return type("Encoded", (), {"input_ids": free[0][2:4]})

    for eos, filler in ((None, PAD), (END, END)):
        Blocks.shown = []
        output = small.generate(
            torch.cat([PROMPT, PROMPT + 1]),
            max_new_tokens=6,
            eos_token_id=eos,
            stop_strings=["end"],
            tokenizer=pieces,
            streamer=Blocks(),
            return_dict_in_generate=True,
        )
        _, block, end = Blocks.shown
        assert end == "end"
        for answer, row in zip(output.answers, block, strict=True):
            assert row == answer.tolist() + [filler] * (6 - len(answer))
        assert len(output.answers[0]) < 6


def test_presets_set_what_they_say_and_arguments_win(small):
    def ask(**options):
        return small.generate(PROMPT, eos_token_id=None, return_dict_in_generate=True, **options)

    output = ask(preset="docvqa", max_denoising_steps=32)
    assert (len(output.answers[0]), output.denoising_steps.tolist()) == (32, [32])
    output = ask(preset="MMMU")
    assert (len(output.answers[0]), output.denoising_steps.tolist()) == (2, [2])
    balanced = {"threshold": 0.9, "prompt_refresh_interval": 4}
    assert run(small, preset="balanced").answers[0].tolist() == run(small, **balanced).answers[0].tolist()
    from transformers_lladav import LladaVGenerationConfig

    base = LladaVGenerationConfig(max_new_tokens=8, threshold=0.0, return_dict_in_generate=True)
    exact = small.generate(PROMPT, generation_config=base, preset="exact", eos_token_id=None)
    assert exact.denoising_steps.tolist() == [8]
    with pytest.raises(ValueError, match="preset='docvqua' is not known; choose one of docvqa"):
        run(small, preset="docvqua")


# --- constraints and stopping criteria ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 8])
@pytest.mark.parametrize("rule", [{}, {"threshold": 0.0}, {"remasking": "random"}])
def test_choices_restrict_the_answer_whatever_order_it_is_written_in(steps, rule, small):
    choices = [[10, 11, 12], [10, 14], [20, 11, 13, 15], [21]]
    for seed in range(5):
        output = run(
            small,
            max_denoising_steps=steps,
            eos_token_id=END,
            allowed_tokens_fn=AnswerChoices(choices, END, MASK),
            generator=torch.Generator().manual_seed(seed),
            **rule,
        )
        assert output.answers[0].tolist() in choices
        assert output.finish_reasons == ["stop"]


def test_each_choice_is_reached_when_it_is_the_only_one(small):
    for choice in ([10, 11, 12], [20]):
        output = run(small, eos_token_id=END, allowed_tokens_fn=AnswerChoices([choice], END, MASK))
        assert output.answers[0].tolist() == choice


def test_constraints_that_leave_nothing_are_refused(small):
    # 1 and 3 are suppressed.
    message = "the constraints leave no token for position 0 of sample 0"
    with pytest.raises(ValueError, match=message):
        run(small, allowed_tokens_fn=lambda sample, position, answer: [1, 3])
    with pytest.raises(ValueError, match="allowed_tokens_fn gave \\[\\] for position 0 of sample 0"):
        run(small, allowed_tokens_fn=lambda sample, position, answer: [])
    with pytest.raises(ValueError, match="choices is empty"):
        AnswerChoices([], END, MASK)
    with pytest.raises(ValueError, match="canvas has 8 tokens and the longest choice with its end 10"):
        run(small, allowed_tokens_fn=AnswerChoices([list(range(10, 19))], END, MASK))


def test_a_function_sees_row_position_and_answer_so_far(small):
    seen = set()

    def even_at_even_places(sample, position, answer):
        seen.add((sample, position, int((answer != MASK).sum())))
        return None if position % 2 else range(4, 80, 2)

    prompts = torch.cat([PROMPT, PROMPT + 1])
    output = small.generate(prompts, max_new_tokens=4, eos_token_id=None, allowed_tokens_fn=even_at_even_places)
    assert (output[:, [4, 6]] % 2 == 0).all()
    assert {(sample, 0, 0) for sample in (0, 1)} <= seen


def test_no_ngram_is_written_twice_even_all_at_once(small):
    free = run(small, max_new_tokens=48, max_denoising_steps=1).answers[0].tolist()
    pairs = list(pairwise(free))
    assert len(pairs) > len(set(pairs)), "the unconstrained answer repeats nothing: choose another model"
    held = run(small, max_new_tokens=48, max_denoising_steps=1, no_repeat_ngram_size=2)
    tokens = held.answers[0].tolist()
    pairs = list(pairwise(tokens))
    assert len(pairs) == len(set(pairs)) == 47
    assert held.denoising_steps.item() > 1


def test_logits_processors_act_on_every_masked_position(small):
    free = run(small).answers[0]
    held = run(small, logits_processor=LogitsProcessorList([SuppressTokensLogitsProcessor(free.tolist())])).answers[0]
    assert not set(held.tolist()) & set(free.tolist())
    penalty = run(small, max_new_tokens=16, logits_processor=[RepetitionPenaltyLogitsProcessor(1e6)]).answers[0]
    assert len(set(penalty.tolist())) == 16
    assert not set(penalty.tolist()) & set(PROMPT[0].tolist())


def test_a_logits_processor_gives_a_padded_sample_what_it_gives_alone(small):
    prompts = torch.tensor([[5, 9, 30, 41], [PAD, PAD, 7, 8]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    options = {"max_new_tokens": 6, "eos_token_id": None, "logits_processor": [RepetitionPenaltyLogitsProcessor(3.0)]}
    together = small.generate(prompts, attention_mask=mask, **options)
    assert torch.equal(together[:1], small.generate(prompts[:1], **options))
    assert torch.equal(together[1, 4:], small.generate(prompts[1:, 2:], **options)[0, 2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"logits_processor": [NoRepeatNGramLogitsProcessor(2)]},
            "NoRepeatNGramLogitsProcessor: give no_repeat_ngram",
        ),
        ({"stopping_criteria": [MaxLengthCriteria(5)]}, "MaxLengthCriteria: give max_new_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(options, message, small):
    with pytest.raises(ValueError, match=f"generate\\(\\) does not take {message}"):
        run(small, **options)


def test_stopping_criteria_are_asked_after_each_block(small):
    exact = run(small, block_length=2).answers[0].tolist()
    asked = []

    def criterion(input_ids, scores):
        asked.append(input_ids[0].tolist())
        return torch.tensor([len(input_ids[0]) >= 8])

    output = run(small, block_length=2, stopping_criteria=StoppingCriteriaList([criterion]))
    assert asked == [PROMPT[0].tolist() + exact[:end] for end in (2, 4)]
    assert output.answers[0].tolist() == exact[:4]
    assert output.finish_reasons == ["stopping_criteria"]
    assert output.stopped.tolist() == [False]
    assert output.denoising_steps.tolist() == [4]
    assert output.tokens_per_forward.tolist() == [1.0]


def test_a_stopping_criterion_ends_only_its_sample(small):
    prompts = torch.cat([PROMPT, PROMPT + 1])
    options = {"max_new_tokens": 8, "block_length": 4, "eos_token_id": None}
    free = small.generate(prompts, **options)
    first = PROMPT[0, 0]
    cut = small.generate(
        prompts,
        stopping_criteria=[lambda input_ids, scores: input_ids[:, 0] == first],
        return_dict_in_generate=True,
        **options,
    )
    assert cut.finish_reasons == ["stopping_criteria", "length"]
    assert cut.answers[0].tolist() == free[0, 4:8].tolist()
    assert cut.answers[1].tolist() == free[1, 4:].tolist()


def test_when_the_time_is_up_the_live_block_is_completed_at_once(small):
    output = run(small, block_length=4, stopping_criteria=MaxTimeCriteria(0.0, initial_timestamp=0.0))
    assert output.denoising_steps.tolist() == [1]
    at_once = run(small, max_new_tokens=8, block_length=4, max_denoising_steps=2)
    assert output.answers[0].tolist() == at_once.answers[0][:4].tolist()
    assert output.finish_reasons == ["stopping_criteria"]


@pytest.mark.parametrize(
    "options", [{"stopping_criteria": MaxTimeCriteria(0.0, initial_timestamp=0.0)}, {"stability_threshold": 0}]
)
def test_a_block_completed_at_once_has_no_masks_even_if_the_model_writes_them(options, tiny_model):
    built = tiny_model(output_vocab_size=96)
    with torch.no_grad():
        built.lm_head.weight.zero_()
        built.lm_head.weight[MASK] = built.lm_head.weight.new_ones(32)
        built.lm_head.weight[7] = -0.5
    plain = built.generate(PROMPT, max_new_tokens=4, max_denoising_steps=1, eos_token_id=None)[0, 4:]
    assert MASK in plain.tolist(), "the model does not write masks: choose another"
    output = built.generate(PROMPT, max_new_tokens=4, eos_token_id=None, return_dict_in_generate=True, **options)
    assert MASK not in output.answers[0].tolist()
    assert output.denoising_steps.tolist() == [1]


def test_a_function_that_changes_its_mind_is_found_out(small):
    asked = []

    def fickle(sample, position, answer):
        asked.append(position)
        return [10 + len(asked) % 2, 12 + len(asked)] if len(asked) < 60 else [4 + len(asked) % 70]

    with pytest.raises(ValueError, match="must answer the same each time"):
        run(small, max_new_tokens=2, max_denoising_steps=1, allowed_tokens_fn=fickle)


def test_a_stable_block_is_completed(small):
    steps = []
    output = run(small, stability_threshold=2, callback_on_step_end=steps.append)
    drafts = [torch.where(step.confidence[0] > 0, step.candidates[0], MASK) for step in steps]
    canvases, before = [], torch.full((8,), MASK)
    for step, draft in zip(steps, drafts, strict=True):
        canvases.append(torch.where(before == MASK, draft, before).tolist())
        before = step.tokens[0]
    stable = [at for at in range(2, len(canvases)) if canvases[at] == canvases[at - 1] == canvases[at - 2]]
    assert output.denoising_steps.item() == min(stable[0] + 1 if stable else 8, 8)
    assert run(small, stability_threshold=0).denoising_steps.tolist() == [1]


# --- holes -------------------------------------------------------------------------------------------------------


def holes(*rows):
    """Prompts with 'm' for a hole and 'e' for the end of a message, padded on the left with 'p'."""
    width = max(map(len, rows))
    table = {"m": MASK, "e": END, "p": PAD}
    ids = [[PAD] * (width - len(row)) + [table.get(item, item) for item in row] for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


ONE = [5, 6, "e", 30, 31, "m", "m", 40, "m", "e"]
TWO = [7, "e", 30, "m", 50, "m", "m", "m", "m", 60]  # left open, more holes


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_length": 2},
        {"threshold": 0.3},
        {"max_denoising_steps": 1},
        {"remasking": "random", "max_denoising_steps": 4},
        {"guidance_scale": 2.0},
        {"block_length": 3, "max_denoising_steps": 4, "temperature": 1.0},
    ],
)
def test_exactly_the_holes_are_filled_alone_and_in_a_batch(options, small):
    inputs = holes(ONE, TWO)
    options = {"infill": True, "return_dict_in_generate": True, "output_scores": True, **options}
    output = small.generate(**inputs, generator=generators(0, 1), **options)
    hole = inputs["input_ids"] == MASK
    assert torch.equal(output.sequences[~hole], inputs["input_ids"][~hole])
    assert not torch.isin(output.sequences[hole], torch.tensor([MASK, END, 1, 3])).any()
    assert [len(answer) for answer in output.answers] == [3, 5]
    assert output.finish_reasons == ["filled", "filled"]
    for index, row in enumerate((ONE, TWO)):
        assert output.sequences[index][hole[index]].tolist() == output.answers[index].tolist()
        alone = small.generate(**holes(row), generator=generators(index), **options)
        assert alone.answers[0].tolist() == output.answers[index].tolist()
        assert int(alone.denoising_steps[0]) <= int(output.denoising_steps[index])
        assert not output.scores[index, : len(output.answers[index])].isnan().any()
    assert output.scores[0, 3:].isnan().all()


def test_a_streamer_sees_no_masks_where_a_sample_has_no_holes(small):
    shown = []

    class Blocks:
        def put(self, value):
            shown.append(value.tolist())

        def end(self):
            pass

    output = small.generate(**holes(ONE, TWO), infill=True, streamer=Blocks(), return_dict_in_generate=True)
    assert shown[1] == [[*output.answers[0].tolist(), PAD, PAD], output.answers[1].tolist()]


def test_messages_end_where_the_model_ends_them_whatever_a_call_stops_at(small):
    for stop in (None, 77):
        with pytest.raises(ValueError, match="outside its last message"):
            small.generate(**holes([5, "m", "e", 30, "m", "e"]), infill=True, eos_token_id=stop)
        filled = small.generate(**holes(ONE), infill=True, eos_token_id=stop)
        assert not torch.isin(filled[0, [5, 6, 8]], torch.tensor([END, MASK, *([stop] if stop else [])])).any()


def test_a_hole_is_filled_as_the_forward_pass_says(small):
    inputs = holes([5, 6, "e", 30, 31, "m", 40, "e"])
    logits = small(**inputs).logits[0, 5, :80].clone()
    logits[[1, 2, 3]] = -torch.inf
    filled = small.generate(**inputs, infill=True)
    assert int(filled[0, 5]) == int(logits.argmax())


def test_filling_a_hole_at_the_end_is_answering_with_a_given_length(small):
    prompt = [5, 6, "e", 30, 31]
    filled = small.generate(**holes([*prompt, "m", "m", "m"]), infill=True)
    written = small.generate(
        **holes(prompt),
        max_new_tokens=3,
        eos_token_id=None,
        allowed_tokens_fn=lambda *_: [token for token in range(80) if token != END],
    )
    assert torch.equal(filled, written)


def test_guidance_hides_the_earlier_messages_and_keeps_the_one_with_the_holes(small):
    inputs = holes(ONE)
    blind = inputs["input_ids"].clone()
    blind[0, :3] = MASK
    both = [small(ids).logits[0, :, :80].double() for ids in (inputs["input_ids"], blind)]
    guided = both[1] + 3.0 * (both[0] - both[1])
    guided[:, [1, 2, 3]] = -torch.inf
    filled = small.generate(**inputs, infill=True, guidance_scale=3.0, max_denoising_steps=1)
    assert filled[0, [5, 6, 8]].tolist() == guided[[5, 6, 8]].argmax(dim=1).tolist()


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([[5, "m", "e", 30, "m", "e"]], {}, "sample 0 has mask tokens at positions [1] outside its last message"),
        ([ONE, [5, "e", 30, 31, "e"]], {}, "sample 1 has no holes to fill"),
        ([ONE], {"max_new_tokens": 8}, "max_new_tokens=8 has no meaning with infill=True: the holes give the length"),
        ([ONE], {"suffix_ids": torch.tensor([4])}, "a suffix has no meaning with infill=True"),
        ([ONE], {"no_repeat_ngram_size": 2}, "no_repeat_ngram_size=2 does not go with infill=True"),
        ([ONE], {"stopping_criteria": MaxTimeCriteria(1.0)}, "stopping_criteria have no meaning with infill=True"),
        (
            [ONE, TWO],
            {"block_length": 2, "max_denoising_steps": 2},
            "max_denoising_steps=2 is less than the 3 blocks of block_length=2 that the 5 holes of sample 1 need",
        ),
    ],
)
def test_holes_that_cannot_be_filled_are_refused(rows, options, message, small):
    with pytest.raises(ValueError, match=re.escape(message)):
        small.generate(**holes(*rows), infill=True, **options)


def test_masks_in_a_prompt_stay_unless_they_are_asked_to_be_filled(small):
    inputs = holes(ONE)
    output = small.generate(**inputs, max_new_tokens=4, eos_token_id=None)
    assert torch.equal(output[:, :10], inputs["input_ids"])


def test_a_suffix_without_room_and_an_empty_attention_mask_are_refused(small):
    with pytest.raises(ValueError, match=r"the prompt has 4 tokens and the answer 510 \(of which the suffix 502\)"):
        run(small, suffix_ids=torch.full((502,), 5))
    with pytest.raises(ValueError, match=r"attention_mask hides every token of samples \[0\]"):
        run(small, attention_mask=torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"the stop string '\\x00' has no tokens"):
        run(small, stop_strings=["\0"], tokenizer=lambda *_, **__: type("Encoded", (), {"input_ids": []}))


def test_the_history_holds_ids_only(small):
    output = run(small, output_history=True, max_denoising_steps=4)
    assert [(step.shape, step.dtype) for step in output.history] == [((1, 8), torch.long)] * 4
