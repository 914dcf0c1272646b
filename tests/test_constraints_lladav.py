"""In whatever order an answer is written, nothing forbidden is reached and all that is allowed is: by brute force."""

import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
)
from transformers.generation import (
    ClassifierFreeGuidanceLogitsProcessor,
    EncoderNoRepeatNGramLogitsProcessor,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
    WatermarkLogitsProcessor,
)

from transformers_lladav.constraints_lladav import (
    NEXT_TOKEN,
    REFUSED_PROCESSORS,
    AllowedTokensConstraint,
    AnswerChoices,
    LogitsProcessors,
    NoRepeatedNgrams,
    permitted_together,
    restrict_all,
)

MASK, INF = 9, math.inf
# Four tokens and, half of the time, a mask.
TEXT = st.lists(st.sampled_from([0, 1, 2, 3, MASK, MASK, MASK, MASK]), min_size=1, max_size=9)
SIZE = st.integers(1, 4)


def masks_of(answer):
    return [index for index, token in enumerate(answer) if token == MASK]


def forbidden(constraint, answer, vocabulary, positions=None, sample=0):
    """Tokens with -inf at each position, as sets; no other logit may have changed."""
    positions = masks_of(answer) if positions is None else positions
    logits = torch.arange(len(positions) * vocabulary, dtype=torch.float32).view(-1, vocabulary)
    before = logits.clone()
    got = constraint.restrict(sample, torch.tensor(answer), positions, logits)
    assert torch.equal(logits, before), "the logits given are not changed in place"
    assert torch.equal(got[got != -INF], before[got != -INF])
    return [set((row == -INF).nonzero()[:, 0].tolist()) for row in got]


def allowing(table):
    """A function for `AllowedTokensConstraint` out of a table by position."""
    return AllowedTokensConstraint(lambda sample, position, answer: table.get(position))


def test_only_allowed_tokens_keep_their_logits():
    assert forbidden(allowing({0: [1, 3], 2: [0]}), [MASK] * 3, 4) == [{0, 2}, set(), {1, 2, 3}]
    assert forbidden(allowing({1: torch.tensor([2])}), [5, MASK], 4) == [{0, 1, 3}]
    assert forbidden(allowing({1: range(4), 0: {2}}), [MASK, MASK], 4) == [{0, 1, 3}, set()]


def test_the_function_sees_row_position_and_answer():
    seen = []
    constraint = AllowedTokensConstraint(lambda *given: seen.append(given))
    forbidden(constraint, [MASK, 5, MASK], 4, positions=[2], sample=7)
    ((sample, position, answer),) = seen
    assert (sample, position, answer.tolist()) == (7, 2, [MASK, 5, MASK])
    assert constraint.permits(7, torch.tensor([MASK]), 0, 1)


def test_permission_asks_the_same_function():
    constraint = allowing({0: [1, 3]})
    answer = torch.tensor([MASK, MASK])
    assert [constraint.permits(0, answer, 0, token) for token in range(4)] == [False, True, False, True]
    assert constraint.permits(0, answer, 1, 2)


@pytest.mark.parametrize("ids", [[], [-1], [0, 4], [100]])
def test_nothing_or_unwritable_ids_are_refused(ids):
    message = (
        f"allowed_tokens_fn gave {ids} for position 1 of sample 0; give at least one id below 4, or None to allow all"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        forbidden(allowing({1: ids}), [MASK, MASK], 4)


END = 8
CHOICES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=4)


def endings(choices, canvas):
    """Choices as they stand in a full canvas."""
    return {(*choice, *[END] * (canvas - len(choice))) for choice in choices}


@given(CHOICES, st.integers(0, 1))
def test_exactly_the_choices_can_be_reached_in_any_order(choices, spare):
    """All orders and all allowed tokens, exhaustively; no state on the way is a dead end."""
    asked = AnswerChoices(choices, END, MASK)
    canvas = max(map(len, choices)) + 1 + spare
    states, final = [(MASK,) * canvas], set()
    known = set(states)
    while states:
        state = states.pop()
        if MASK not in state:
            final.add(state)
        for position in masks_of(state):
            allowed = asked(0, position, torch.tensor(state))
            assert allowed, f"{state} leads nowhere"
            assert allowed == sorted(set(allowed))
            after = {(*state[:position], token, *state[position + 1 :]) for token in allowed}
            states += after - known
            known |= after
    assert final == endings(choices, canvas)


@given(CHOICES, st.randoms(use_true_random=False))
def test_several_tokens_at_once_still_make_a_choice(choices, random):
    constraint = AllowedTokensConstraint(AnswerChoices(choices, END, MASK))
    canvas = max(map(len, choices)) + 1
    answer = [MASK] * canvas
    while masks_of(answer):
        positions = masks_of(answer)
        options = [sorted(set(range(9)) - banned) for banned in forbidden(constraint, answer, 9)]
        write(answer, [constraint], positions, [random.choice(option) for option in options], random)
    assert tuple(answer) in endings(choices, canvas)


def write(answer, constraints, positions, candidates, random):
    """Offer some positions, in any order, and write what is permitted together; changes `answer`."""
    order = random.sample(range(len(positions)), random.randint(1, len(positions)))
    chosen, tokens = [positions[index] for index in order], [candidates[index] for index in order]
    kept = permitted_together(constraints, 0, torch.tensor(answer), tokens, chosen)
    assert kept[0] == 0, "the surest token always fits"
    assert kept == sorted(kept)
    for index in kept:
        answer[chosen[index]] = tokens[index]


def test_a_choice_that_another_begins_with_is_told_apart_by_its_end():
    asked = AnswerChoices([[1], [1, 2]], END, MASK)
    assert asked.length == 3
    assert asked(0, 0, torch.tensor([MASK, MASK, MASK])) == [1]
    assert asked(0, 1, torch.tensor([MASK, MASK, MASK])) == [2, END]
    assert asked(0, 2, torch.tensor([MASK, 2, MASK])) == [END]
    assert asked(0, 0, torch.tensor([MASK, END, MASK, MASK])) == [1]


def test_what_is_written_narrows_the_choices_down_to_none():
    asked = AnswerChoices([[1, 2], [0, 2]], END, MASK)
    assert asked(0, 0, torch.tensor([MASK, 2, MASK])) == [0, 1]
    assert asked(0, 1, torch.tensor([3, MASK, MASK])) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "choices is empty; give at least one answer to choose from"),
        ([[1], []], "choice 1 has no tokens; give a text that is not empty"),
    ],
)
def test_choices_without_tokens_are_refused(choices, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AnswerChoices(choices, END, MASK)


def test_a_canvas_too_short_for_the_choices_is_refused():
    message = "the canvas has 3 tokens and the longest choice with its end 4; pass max_new_tokens=4 or more"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        AnswerChoices([[1], [1, 2, 3]], END, MASK)(0, 0, torch.tensor([MASK] * 3))


def repeats(answer, size, position=None):
    """Whether an n-gram without masks occurs twice; only those over a position, if one is given."""
    grams = [tuple(answer[start : start + size]) for start in range(len(answer) - size + 1)]
    over = [gram for start, gram in enumerate(grams) if position is None or start <= position < start + size]
    return any(MASK not in gram and grams.count(gram) > 1 for gram in over)


def written(answer, position, token):
    return [*answer[:position], token, *answer[position + 1 :]]


@given(TEXT, SIZE)
def test_tokens_that_would_repeat_an_ngram_are_forbidden_and_no_others(answer, size):
    rule = NoRepeatedNgrams(size, MASK)
    expected = [
        {token for token in range(4) if repeats(written(answer, position, token), size, position)}
        for position in masks_of(answer)
    ]
    assert forbidden(rule, answer, 4) == expected
    permitted = [
        {token for token in range(4) if not rule.permits(0, torch.tensor(answer), position, token)}
        for position in masks_of(answer)
    ]
    assert permitted == expected


@given(TEXT, SIZE, st.data())
def test_it_does_not_matter_at_which_positions_logits_are_asked_for(answer, size, data):
    some = data.draw(st.lists(st.sampled_from(range(len(answer))), unique=True).map(sorted))
    some = [position for position in some if answer[position] == MASK]
    rule = NoRepeatedNgrams(size, MASK)
    everywhere = dict(zip(masks_of(answer), forbidden(rule, answer, 4), strict=True))
    assert forbidden(rule, answer, 4, positions=some) == [everywhere[position] for position in some]


@pytest.mark.parametrize(
    ("answer", "size", "expected"),
    [
        ([1, 2, 3, 1, MASK], 2, [{2}]),
        ([1, 2, 3, 1, MASK], 3, [set()]),
        ([1, 2, 3, 1, 2, MASK], 3, [{3}]),
        ([MASK, 2, 1, 2], 2, [{1}]),
        ([1, 2, 3, 1, MASK, 3], 3, [{2}]),
        ([1, 2, 0, MASK, 2, 3], 2, [{1}]),
        ([1, 1, 2, MASK, MASK], 2, [set(), set()]),
        ([3, MASK, 3, MASK], 1, [{3}, {3}]),
        # One token makes two equal windows that overlap: "aa" in "a?a", and "aba" in "ab?ba".
        ([1, MASK, 1], 2, [{1}]),
        ([1, 2, MASK, 2, 1], 3, [{1}]),
        ([1, MASK], 3, [set()]),
    ],
)
def test_ngrams_by_hand(answer, size, expected):
    assert forbidden(NoRepeatedNgrams(size, MASK), answer, 4) == expected


@given(st.integers(1, 3), st.integers(1, 9), st.integers(2, 4), st.randoms(use_true_random=False))
def test_no_ngram_is_written_twice_in_any_order_and_the_loop_moves_on(size, canvas, vocabulary, random):
    answer, constraints = [MASK] * canvas, [NoRepeatedNgrams(size, MASK)]
    while masks_of(answer):
        positions = masks_of(answer)
        banned = forbidden(constraints[0], answer, vocabulary)
        if any(len(tokens) == vocabulary for tokens in banned):
            with pytest.raises(ValueError, match=r"^the constraints leave no token for position"):
                everywhere(constraints, answer, vocabulary)
            break
        candidates = [random.choice(sorted(set(range(vocabulary)) - tokens)) for tokens in banned]
        write(answer, constraints, positions, candidates, random)
        assert not repeats(answer, size)


def everywhere(constraints, answer, vocabulary):
    places = torch.tensor([answer]) == MASK
    return restrict_all(constraints, [0], torch.tensor([answer]), places, torch.zeros(int(places.sum()), vocabulary))


def test_of_two_equal_words_the_surer_one_is_written():
    """Both may stand there alone; the word that repeats the surer one is left for a later step."""
    answer = torch.tensor([MASK, MASK, 3, MASK, MASK])
    rule = NoRepeatedNgrams(2, MASK)
    # 1 2 at the end is surest, 1 at the beginning fits still, 2 behind it does not.
    assert permitted_together([rule], 0, answer, [1, 2, 1, 2], [3, 4, 0, 1]) == [0, 1, 2]
    assert permitted_together([rule], 0, answer, [1, 2, 0, 2], [3, 4, 0, 1]) == [0, 1, 2, 3]
    assert permitted_together([], 0, answer, [1, 2, 1, 2], [3, 4, 0, 1]) == [0, 1, 2, 3]
    assert permitted_together([rule], 0, answer, [], []) == []
    assert answer.tolist() == [MASK, MASK, 3, MASK, MASK]


def test_constraints_see_what_surer_positions_were_given():
    choices = AllowedTokensConstraint(AnswerChoices([[1, 2], [2, 1]], END, MASK))
    answer = torch.tensor([MASK] * 3)
    assert permitted_together([choices], 0, answer, [1, 1, END], [0, 1, 2]) == [0, 2]
    assert permitted_together([choices], 0, answer, [END, 2, 2], [2, 1, 0]) == [0, 1]


def test_every_row_gets_its_own_restrictions():
    answers = torch.tensor([[MASK, 1, 1, MASK], [0, 1, 1, MASK], [1, MASK, MASK, MASK]])
    places = answers == MASK
    places[1] = False  # this row does not take part
    logits = torch.arange(15, dtype=torch.float32).view(5, 3)
    got = restrict_all([NoRepeatedNgrams(2, MASK)], [4, 5, 6], answers, places, logits)
    assert (got == -INF).nonzero().tolist() == [[0, 1], [1, 1]]
    assert torch.equal(got[2:], logits[2:])


def test_samples_and_not_rows_are_asked_for():
    seen = set()
    rule = AllowedTokensConstraint(lambda sample, position, answer: seen.add((sample, position)))
    answers = torch.tensor([[MASK, 1], [MASK, MASK]])
    restrict_all([rule], [3, 7], answers, answers == MASK, torch.zeros(3, 4))
    assert seen == {(3, 0), (7, 0), (7, 1)}


def test_constraints_that_leave_nothing_are_named():
    message = (
        "the constraints leave no token for position 2 of sample 5; allow more tokens, a larger n-gram, or choices "
        "that fit the canvas"
    )
    answers = torch.tensor([[0, 1, MASK]])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        restrict_all([NoRepeatedNgrams(1, MASK)], [5], answers, answers == MASK, torch.zeros(1, 2))


@pytest.mark.parametrize(
    "processor",
    [lambda ids, scores: torch.zeros_like(scores), InfNanRemoveLogitsProcessor()],
    ids=["custom", "InfNanRemove"],
)
def test_a_constraint_takes_tokens_away_and_gives_none_back(processor):
    answers = torch.tensor([[MASK]])
    rules = [allowing({0: [0, 1]}), LogitsProcessors([processor], [torch.tensor([0])], MASK)]
    for constraints in (rules, rules[::-1]):
        got = restrict_all(constraints, [0], answers, answers == MASK, torch.tensor([[-INF, 0.0, 0.0]]))
        assert got.tolist() == [[-INF, 0.0, -INF]]


def process(processors, logits, prompt=(1, 2), answer=(MASK, 4, MASK)):
    """Logits after processors, at as many positions as there are rows."""
    constraint = LogitsProcessors(processors, [torch.tensor([0]), torch.tensor(prompt)], MASK)
    answer = torch.tensor(answer)
    return constraint.restrict(1, answer, list(range(len(logits))), torch.tensor(logits)).tolist()


def test_a_processor_gets_what_is_known_and_can_be_written_once_per_position():
    seen = []

    def custom(input_ids, scores):
        seen.append((input_ids.tolist(), scores.tolist()))
        return scores + 1

    # 7 is a placeholder for a picture, above the six tokens that can be written.
    assert process([custom], [[0.0] * 6, [2.0] * 6], prompt=(1, 7, 2)) == [[1.0] * 6, [3.0] * 6]
    assert seen == [([[1, 2, 4]] * 2, [[0.0] * 6, [2.0] * 6])]


def test_a_mask_that_can_be_written_is_not_known():
    seen = []
    constraint = LogitsProcessors([lambda ids, scores: seen.append(ids.tolist()) or scores], [torch.tensor([9, 8])], 9)
    constraint.restrict(0, torch.tensor([9, 3, 9]), [0, 2], torch.zeros(2, 10))
    assert seen == [[[8, 3]] * 2]


def test_repetition_is_penalised_over_prompt_and_answer():
    processors = [RepetitionPenaltyLogitsProcessor(2.0)]
    got = process(processors, [[4.0, 4.0, -4.0, -4.0, 4.0], [1.0, -INF, 2.0, 3.0, 4.0]])
    assert got == [[4.0, 2.0, -8.0, -4.0, 2.0], [1.0, -INF, 1.0, 3.0, 2.0]]


def test_temperature_suppression_and_lists_of_processors_work():
    logits = [[2.0, 4.0, -INF]]
    assert process([TemperatureLogitsWarper(2.0)], logits) == [[1.0, 2.0, -INF]]
    assert process([SuppressTokensLogitsProcessor([1], device="cpu")], logits) == [[2.0, -INF, -INF]]
    both = LogitsProcessorList([TemperatureLogitsWarper(2.0), SuppressTokensLogitsProcessor([0], device="cpu")])
    assert process(both, logits) == [[-INF, 2.0, -INF]]
    assert process(tuple(both), logits) == [[-INF, 2.0, -INF]]
    assert process(TemperatureLogitsWarper(0.5), logits) == [[4.0, 8.0, -INF]]


def test_tokens_far_below_the_likeliest_are_left_out():
    # Probabilities 5/8, 2/8, 1/8: a fifth of the highest is 1/8, three tenths of it 3/16.
    logits = [[math.log(5), math.log(2), math.log(1)]]
    assert [value > -INF for value in process([MinPLogitsWarper(0.19)], logits)[0]] == [True, True, True]
    assert [value > -INF for value in process([MinPLogitsWarper(0.3)], logits)[0]] == [True, True, False]


def test_processors_permit_everything_together():
    assert LogitsProcessors([TemperatureLogitsWarper(2.0)], [torch.tensor([1])], MASK).permits(0, None, 0, 1)


ENDS_WHERE = "an answer ends where the model writes a stop"
REFUSED = {
    NoRepeatNGramLogitsProcessor: ((2,), "give no_repeat_ngram_size"),
    EncoderNoRepeatNGramLogitsProcessor: ((2, torch.tensor([[1, 2]])), NEXT_TOKEN),
    PrefixConstrainedLogitsProcessor: ((lambda row, ids: [1], 1), "give allowed_tokens_fn"),
    NoBadWordsLogitsProcessor: (([[1]], [2]), NEXT_TOKEN),
    SequenceBiasLogitsProcessor: (({(1,): 1.0},), NEXT_TOKEN),
    MinLengthLogitsProcessor: ((5, 2), ENDS_WHERE),
    MinNewTokensLengthLogitsProcessor: ((1, 5, 2), ENDS_WHERE),
    ForcedBOSTokenLogitsProcessor: (
        (1,),
        "put what the answer begins with into the prompt (continue_final_message)",
    ),
    ForcedEOSTokenLogitsProcessor: ((5, 2), "give what the answer ends with as suffix_ids"),
    ExponentialDecayLengthPenalty: (((5, 1.1), 2, 1), NEXT_TOKEN),
    SuppressTokensAtBeginLogitsProcessor: (([1], 0), "give allowed_tokens_fn"),
    ClassifierFreeGuidanceLogitsProcessor: ((1.5,), "give guidance_scale"),
    UnbatchedClassifierFreeGuidanceLogitsProcessor: ((1.5, None), "give guidance_scale"),
    WatermarkLogitsProcessor: ((16, "cpu"), NEXT_TOKEN),
    SynthIDTextWatermarkLogitsProcessor: ((2, [1], 8, 0, 4, "cpu"), NEXT_TOKEN),
}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_processors_of_the_next_token_are_refused_with_a_reason(kind):
    arguments, reason = REFUSED[kind]
    message = f"generate() does not take {kind.__name__}: {reason}"
    for processors in ([kind(*arguments)], LogitsProcessorList([TemperatureLogitsWarper(2.0), kind(*arguments)])):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            LogitsProcessors(processors, [], MASK)


def test_every_refused_processor_is_tested():
    assert set(REFUSED) == set(REFUSED_PROCESSORS)


@pytest.mark.parametrize(("processors", "shown"), [(["hot"], "'hot'"), (0.5, "0.5"), ([None], "None")])
def test_processors_that_cannot_be_called_are_refused(processors, shown):
    message = f"logits_processor holds {shown}; give processors of transformers or other callables"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        LogitsProcessors(processors, [], MASK)


def test_all_pairs_of_short_texts_with_one_gap_agree_with_brute_force():
    """Exhaustive where random texts might miss a case: two tokens, six positions, n = 2 and 3."""
    for size in (2, 3):
        rule = NoRepeatedNgrams(size, MASK)
        for text in itertools.product((0, 1), repeat=5):
            for gap in range(6):
                answer = [*text[:gap], MASK, *text[gap:]]
                expected = {token for token in (0, 1) if repeats(written(answer, gap, token), size, gap)}
                assert forbidden(rule, answer, 2) == [expected]
