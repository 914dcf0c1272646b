"""Answers stop by the official rule, blocks end early when stable and sure, and foreign criteria are refused."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MaxTimeCriteria, StoppingCriteria, StoppingCriteriaList
from transformers.generation import MaxLengthCriteria
from transformers.generation.stopping_criteria import ConfidenceCriteria, EosTokenCriteria, StopStringCriteria

from transformers_lladav.stopping_lladav import (
    REFUSED_CRITERIA,
    StableAndConfident,
    check_criteria,
    leftmost_match,
    sequence_stop,
    split_time,
    token_stop,
)

CANVAS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
SEQUENCE = st.lists(st.integers(0, 3), min_size=1, max_size=3)


def test_the_leftmost_stop_token_counts():
    answer = torch.tensor([[5, 7, 6, 7], [5, 5, 5, 5], [6, 0, 0, 7]])
    assert token_stop(answer, torch.tensor([7, 6])).tolist() == [1, 4, 0]
    assert token_stop(answer, torch.tensor([7])).tolist() == [1, 4, 3]
    assert token_stop(answer, torch.tensor([], dtype=torch.long)).tolist() == [4, 4, 4]


def find(answer, stop):
    """Where a list starts in another, or the length of the other."""
    starts = [start for start in range(len(answer) - len(stop) + 1) if answer[start : start + len(stop)] == stop]
    return starts[0] if starts else len(answer)


@given(CANVAS, SEQUENCE)
def test_a_match_is_the_first_place_where_all_tokens_agree(answer, stop):
    assert leftmost_match(torch.tensor([answer]), torch.tensor(stop)).item() == find(answer, stop)


def test_a_stop_longer_than_the_canvas_is_never_found():
    assert leftmost_match(torch.tensor([[1, 2]]), torch.tensor([1, 2, 3])).tolist() == [2]


def stops(*sequences):
    return [torch.tensor(sequence) for sequence in sequences]


def test_the_first_sequence_of_the_list_counts_not_the_leftmost():
    answer, nothing = torch.tensor([[1, 2, 3, 4]]), torch.tensor([4])
    assert sequence_stop(answer, stops([3], [1, 2]), nothing).tolist() == [2]
    assert sequence_stop(answer, stops([1, 2], [3]), nothing).tolist() == [0]


def test_once_a_stop_was_found_only_the_first_sequence_moves_it():
    answer, found = torch.tensor([[1, 2, 3, 4]]), torch.tensor([3])
    assert sequence_stop(answer, stops([9], [2]), found).tolist() == [3]
    assert sequence_stop(answer, stops([2], [9]), found).tolist() == [1]
    assert sequence_stop(answer, stops([9], [9]), found).tolist() == [3]
    assert sequence_stop(answer, [], found).tolist() == [3]


def test_rows_of_a_batch_stop_on_their_own():
    answer = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [0, 0, 0, 0]])
    assert sequence_stop(answer, stops([2], [3]), torch.tensor([4, 1, 4])).tolist() == [1, 2, 4]


@given(CANVAS, st.lists(SEQUENCE, max_size=3), st.data())
def test_stops_follow_the_official_rule_step_by_step(answer, sequences, data):
    canvas = len(answer)
    found = data.draw(st.integers(0, canvas))
    expected, seen = found, found < canvas
    for index, sequence in enumerate(sequences):
        where = find(answer, sequence)
        if where < canvas and (not seen or index == 0):
            expected, seen = where, True
    got = sequence_stop(torch.tensor([answer]), stops(*sequences), torch.tensor([found]))
    assert got.tolist() == [expected]


def watcher(stability, confidence, batch, width):
    """At the start of a block."""
    early = StableAndConfident(stability, confidence, batch)
    early.start_block(width, torch.device("cpu"))
    return early


def ask(early, canvas, entropy=None, competing=None, samples=None):
    """One step; all rows and all positions take part unless told otherwise."""
    canvas = torch.tensor(canvas)
    samples = torch.arange(len(canvas)) if samples is None else torch.tensor(samples)
    competing = torch.ones_like(canvas) if competing is None else torch.tensor(competing)
    entropy = None if entropy is None else torch.tensor(entropy, dtype=torch.float64)
    return early(samples, canvas, entropy, competing.bool()).tolist()


def test_stable_is_a_canvas_that_equals_those_of_the_last_steps():
    early = watcher(2, None, 1, width=2)
    steps = [[1, 2], [1, 2], [1, 2], [1, 2], [1, 3], [1, 3], [1, 2], [1, 2], [1, 2]]
    assert [ask(early, [canvas])[0] for canvas in steps] == [
        False, False, True, True, False, False, False, False, True,
    ]  # fmt: skip


def test_a_stability_of_zero_asks_nothing():
    assert ask(watcher(0, None, 2, width=2), [[1, 2], [3, 4]]) == [True, True]


def test_a_new_block_begins_without_history_and_may_have_another_width():
    early = watcher(1, None, 1, width=2)
    assert ask(early, [[1, 2]]) == [False]
    early.start_block(2, torch.device("cpu"))
    assert ask(early, [[1, 2]]) == [False]
    assert ask(early, [[1, 2]]) == [True]
    early.start_block(1, torch.device("cpu"))
    assert ask(early, [[1]]) == [False]
    assert ask(early, [[1]]) == [True]


def test_confident_is_a_mean_over_masked_positions_below_the_threshold():
    # Means: (1 + 1/2) / 2 = 3/4 over the masked two, 1/4 over the masked one, 0 where nothing is masked.
    entropy, competing = [[1.0, 0.5, 9.0], [0.25, 9.0, 9.0], [9.0, 9.0, 9.0]], [[1, 1, 0], [1, 0, 0], [0, 0, 0]]
    for threshold, expected in (
        (0.76, [True, True, True]),
        (0.75, [False, True, True]),
        (0.25, [False, False, True]),
    ):
        assert ask(watcher(None, threshold, 3, width=3), [[7, 7, 7]] * 3, entropy, competing) == expected


def test_both_must_hold_where_both_are_asked_for():
    early = watcher(1, 0.5, 2, width=1)
    assert ask(early, [[1], [1]], [[0.1], [0.1]]) == [False, False]
    assert ask(early, [[1], [2]], [[0.1], [0.1]]) == [True, False]
    assert ask(early, [[1], [2]], [[0.9], [0.1]]) == [False, True]


def test_confidence_cannot_be_judged_without_entropies():
    with pytest.raises(ValueError, match=r"^confidence_threshold=0\.5 needs the entropies of the step$"):
        ask(watcher(None, 0.5, 1, width=1), [[1]])


# Per step and sample: whether it still takes part, and its canvas of two positions.
STEP = st.tuples(*[st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 1))] * 3)


@given(st.lists(STEP, min_size=1, max_size=10), st.integers(0, 3))
def test_samples_that_drop_out_and_return_keep_their_own_history(steps, threshold):
    early = watcher(threshold, None, 3, width=2)
    history = [[], [], []]
    for step in steps:
        samples = [index for index, (takes_part, *_) in enumerate(step) if takes_part]
        canvases = [list(step[index][1:]) for index in samples]
        if not samples:
            continue
        expected = []
        for index, canvas in zip(samples, canvases, strict=True):
            last = history[index][-threshold:] if threshold else []
            expected.append(len(last) == threshold and all(before == canvas for before in last))
            history[index].append(canvas)
        assert ask(early, canvases, samples=samples) == expected


class Never(StoppingCriteria):
    """A criterion of a user."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


REFUSED = {
    MaxLengthCriteria: (lambda tokenizer: MaxLengthCriteria(5), "give max_new_tokens"),
    StopStringCriteria: (lambda tokenizer: StopStringCriteria(tokenizer, ["END"]), "give stop_strings"),
    EosTokenCriteria: (lambda tokenizer: EosTokenCriteria(2), "give eos_token_id"),
    ConfidenceCriteria: (
        lambda tokenizer: ConfidenceCriteria(0.5),
        "it belongs to assisted decoding; confidence_threshold ends a block early here",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_criteria_that_have_their_own_setting_are_refused(kind, tokenizer):
    build, reason = REFUSED[kind]
    criterion = build(tokenizer)
    for criteria in (criterion, [Never(), criterion], StoppingCriteriaList([criterion])):
        with pytest.raises(ValueError, match=f"^{re.escape(f'generate() does not take {kind.__name__}: {reason}')}$"):
            check_criteria(criteria)


def test_every_refused_criterion_is_tested_and_a_class_of_ones_own_counts_as_its_parent():
    assert set(REFUSED) == set(REFUSED_CRITERIA)

    class Longer(MaxLengthCriteria):
        pass

    with pytest.raises(ValueError, match="does not take Longer: give max_new_tokens"):
        check_criteria([Longer(5)])


def test_criteria_come_as_nothing_one_or_several():
    never, limit = Never(), MaxTimeCriteria(1.0)
    assert check_criteria(None) == []
    assert check_criteria([]) == []
    assert check_criteria(never) == [never]
    assert check_criteria([never, limit]) == [never, limit]
    assert check_criteria((limit,)) == [limit]
    assert check_criteria(StoppingCriteriaList([limit, never])) == [limit, never]
    function = lambda input_ids, scores: False  # noqa: E731
    assert check_criteria(function) == [function]


@pytest.mark.parametrize(("criteria", "shown"), [([Never(), "END"], "'END'"), (7, "7"), ([None], "None")])
def test_what_cannot_be_called_is_refused(criteria, shown):
    message = f"stopping_criteria holds {shown}; give stop texts or callables, not both in one list"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_criteria(criteria)


def test_time_limits_are_separated_and_the_rest_keeps_its_order():
    first, second, limit, other = Never(), Never(), MaxTimeCriteria(1.0), MaxTimeCriteria(2.0)
    assert split_time([first, limit, second, other]) == ([limit, other], [first, second])
    assert split_time([]) == ([], [])
