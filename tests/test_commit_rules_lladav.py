"""Commit rules write what plain lists by hand say, ties and empty rows included, and come back from a file."""

import dataclasses
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformers_lladav.commit_rules_lladav import (
    RULES,
    ConfidenceFactor,
    ConfidenceThreshold,
    EntropyBound,
    FixedSchedule,
    Offer,
    commits_per_step,
    load_rule,
    most_confident,
)

EVERY_RULE = [FixedSchedule(), ConfidenceThreshold(0.5), ConfidenceFactor(1.5), EntropyBound(0.75)]
# Eighths are exact in binary, so that sums and products are too and a bound can be met to the bit.
EIGHTHS = st.integers(0, 8).map(lambda eighths: eighths / 8)
POSITION = st.tuples(EIGHTHS, st.booleans(), EIGHTHS.map(lambda value: 2 * value))  # confidence, competes, entropy
ROW = st.tuples(st.lists(POSITION, min_size=7, max_size=7), st.integers(0, 8), st.integers(1, 8))


def schedule(masked, steps):
    """The counts of all steps, for one row."""
    return [int(commits_per_step(torch.tensor([masked]), step, steps)) for step in range(steps)]


@pytest.mark.parametrize(
    ("masked", "steps", "expected"),
    [
        (8, 8, [1] * 8),
        (8, 4, [2] * 4),
        (24, 10, [3, 3, 3, 3, 2, 2, 2, 2, 2, 2]),
        (10, 3, [4, 3, 3]),
        (8, 1, [8]),
        (1, 1, [1]),
        (2, 5, [1, 1, 0, 0, 0]),
        (0, 3, [0, 0, 0]),
    ],
)
def test_commits_are_spread_evenly_and_the_first_steps_take_the_rest(masked, steps, expected):
    assert schedule(masked, steps) == expected


@given(st.integers(1, 500), st.integers(1, 500))
def test_commits_sum_to_the_masks_and_never_grow(masked, steps):
    counts = schedule(masked, steps)
    assert len(counts) == steps
    assert sum(counts) == masked
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


def test_rows_of_a_batch_have_their_own_counts():
    masked = torch.tensor([10, 3, 0, 1])
    assert [commits_per_step(masked, step, 3).tolist() for step in range(3)] == [
        [4, 1, 0, 1],
        [3, 1, 0, 0],
        [3, 1, 0, 0],
    ]


def mask_of(*rows):
    return torch.tensor([[int(mark) for mark in row] for row in rows]).bool()


def best(confidence, competing, *counts):
    """`most_confident` with one count for every row, or one for all."""
    counts = torch.tensor(counts if len(counts) == len(confidence) else counts * len(confidence))
    return most_confident(confidence, competing, counts)


def test_the_most_confident_competing_positions_are_chosen():
    confidence = torch.tensor([[0.9, 0.1, 0.8, 0.5], [0.9, 0.1, 0.8, 0.5]])
    chosen = best(confidence, mask_of("0111", "1111"), 2)
    assert chosen.tolist() == mask_of("0011", "1010").tolist()


def test_where_fewer_compete_only_those_are_chosen():
    confidence = torch.tensor([[0.9, 0.1, 0.8, 0.5], [0.9, 0.1, 0.8, 0.5]])
    assert best(confidence, mask_of("0100", "0000"), 3).tolist() == mask_of("0100", "0000").tolist()
    assert best(confidence, mask_of("1111", "1111"), 9).all()


def test_each_row_chooses_its_own_number():
    confidence = torch.tensor([[0.9, 0.1, 0.8, 0.5]] * 3)
    assert best(confidence, mask_of("1111", "1111", "1111"), 0, 1, 3).tolist() == (
        mask_of("0000", "1000", "1011").tolist()
    )


def test_ties_still_give_exactly_the_number_asked_for_leftmost_first():
    confidence = torch.ones(2, 6, dtype=torch.float64)
    chosen = best(confidence, mask_of("111111", "011110"), 3)
    assert chosen.tolist() == mask_of("111000", "011100").tolist()
    long = torch.ones(1, 3000, dtype=torch.float64)  # sorts keep short rows in order without being asked to
    assert best(long, long.bool(), 1000)[0].nonzero()[:, 0].tolist() == list(range(1000))


def test_a_confidence_of_zero_or_less_beats_a_position_that_does_not_compete():
    chosen = best(torch.tensor([[0.0, 0.9, 0.0], [-3.0, 0.9, -2.0]]), mask_of("101", "101"), 2)
    assert chosen.tolist() == mask_of("101", "101").tolist()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=20), st.integers(0, 25))
def test_chosen_positions_compete_are_counted_and_beat_the_others(positions, count):
    confidence = torch.tensor([[value for value, _ in positions]], dtype=torch.float64)
    competing = torch.tensor([[flag for _, flag in positions]])
    chosen = best(confidence, competing, count)
    assert not (chosen & ~competing).any()
    assert int(chosen.sum()) == min(count, int(competing.sum()))
    left = competing & ~chosen
    if chosen.any() and left.any():
        assert confidence[chosen].min() >= confidence[left].max()


def offer(confidence, competing=None, entropy=None, planned=1, needed=1):
    """One row."""
    confidence = torch.tensor([confidence], dtype=torch.float64)
    return Offer(
        confidence,
        None if entropy is None else torch.tensor([entropy], dtype=torch.float64),
        torch.ones_like(confidence, dtype=torch.bool) if competing is None else mask_of(competing),
        torch.tensor([planned]),
        torch.tensor([needed]),
    )


def chosen(rule, *given, **settings):
    """What a rule marks, as text."""
    return "".join(str(int(mark)) for mark in rule.select(offer(*given, **settings))[0])


def test_the_schedule_writes_as_many_as_planned_and_nothing_where_nothing_is():
    assert chosen(FixedSchedule(), [0.1, 0.9, 0.5, 0.9], planned=2) == "0101"
    assert chosen(FixedSchedule(), [0.1, 0.9, 0.5, 0.9], planned=0, needed=3) == "0000"


def test_a_threshold_includes_what_equals_it():
    assert chosen(ConfidenceThreshold(0.5), [0.5, 0.75, 0.25, 0.4375]) == "1100"
    assert chosen(ConfidenceThreshold(0.5), [0.5, 0.75, 0.25, 0.75], "1010") == "1000"
    assert chosen(ConfidenceThreshold(0), [0.0, 0.75, 0.25], "110") == "110"
    assert chosen(ConfidenceThreshold(1.0), [1.0, 0.99, 1.0]) == "101"


def test_below_the_threshold_the_surest_are_written_so_that_the_steps_suffice():
    assert chosen(ConfidenceThreshold(0.9), [0.25, 0.5, 0.5]) == "010"
    assert chosen(ConfidenceThreshold(0.9), [0.25, 0.5, 0.5], needed=2) == "011"
    assert chosen(ConfidenceThreshold(0.9), [0.95, 0.5, 0.25], needed=2) == "110"
    assert chosen(ConfidenceThreshold(0.9), [0.95, 0.5, 0.25], needed=7) == "111"


def test_a_factor_asks_more_of_each_the_more_are_written():
    # p = 15/16, 1/2, 1/2, 31/32 sorted is 31/32, 15/16, 1/2, 1/2; (n + 1)(1 - p_n) is 2/32, 3/16, 2, 5/2.
    probabilities = [15 / 16, 1 / 2, 1 / 2, 31 / 32]
    assert chosen(ConfidenceFactor(3 / 16), probabilities) == "0001"  # 3/16 is not below 3/16
    assert chosen(ConfidenceFactor(0.2), probabilities) == "1001"
    assert chosen(ConfidenceFactor(2.25), probabilities) == "1101"  # of two equal ones the left one
    assert chosen(ConfidenceFactor(2.75), probabilities) == "1111"
    assert chosen(ConfidenceFactor(0.01), probabilities) == "0001"  # none fits, one is written
    assert chosen(ConfidenceFactor(0.01), probabilities, needed=3) == "1101"


def test_certain_tokens_are_written_whatever_the_factor():
    assert chosen(ConfidenceFactor(1e-9), [1.0, 0.5, 1.0]) == "101"


def test_entropies_add_up_to_the_bound_without_the_largest():
    # Sorted: 0, 1/2, 3/4, 2. Sums without the largest: 0, 0, 1/2, 5/4.
    entropies = [0.75, 2.0, 0.0, 0.5]
    for bound, expected in ((0.25, "0011"), (0.5, "1011"), (1.0, "1011"), (1.25, "1111")):
        assert chosen(EntropyBound(bound), [0.5] * 4, entropy=entropies) == expected
    assert chosen(EntropyBound(0.25), [0.5] * 4, entropy=entropies, needed=3) == "1011"
    assert chosen(EntropyBound(0.25), [0.5] * 4, "1101", entropy=entropies) == "0001"
    # Sorted: 1/2, 3/4, 2. Sums without the largest: 0, 1/2, 5/4.
    assert chosen(EntropyBound(0.5), [0.5] * 4, "1101", entropy=entropies) == "1001"


def test_the_smallest_entropies_are_written_not_the_highest_confidences():
    assert chosen(EntropyBound(0.25), [0.9, 0.1], entropy=[1.5, 1.0]) == "01"


def test_equal_entropies_are_taken_from_the_left():
    assert chosen(EntropyBound(1.0), [0.5] * 5, "01111", entropy=[0.5] * 5) == "01110"


def test_an_entropy_bound_needs_entropies():
    with pytest.raises(ValueError, match=r"^an entropy bound needs the entropies of the offer$"):
        EntropyBound(1.0).select(offer([0.5]))
    assert [rule.needs_entropy for rule in EVERY_RULE] == [False, False, False, True]


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: type(rule).__name__)
def test_a_row_where_nothing_competes_writes_nothing_and_hides_nothing(rule):
    both = Offer(
        confidence=torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64),
        entropy=torch.zeros(2, 2, dtype=torch.float64),
        competing=mask_of("00", "11"),
        planned=torch.tensor([0, 2]),
        needed=torch.tensor([0, 2]),
    )
    assert rule.select(both).tolist() == [[False, False], [True, True]]


def reference(rule, confidence, competing, entropy, planned, needed):
    """The same rules on lists: the set of positions written."""
    rivals = [index for index, flag in enumerate(competing) if flag]
    surest = sorted(rivals, key=lambda index: -confidence[index])  # sorting is stable: leftmost first
    if isinstance(rule, FixedSchedule):
        return set(surest[:planned])
    if isinstance(rule, ConfidenceThreshold):
        return {index for index in rivals if confidence[index] >= rule.threshold} | set(surest[:needed])
    if isinstance(rule, ConfidenceFactor):
        fits = [n for n in range(1, len(surest) + 1) if (n + 1) * (1 - confidence[surest[n - 1]]) < rule.factor]
        return set(surest[: max([*fits, needed])])
    clearest = sorted(rivals, key=lambda index: entropy[index])
    count = 0
    for n in range(1, len(clearest) + 1):
        values = [entropy[index] for index in clearest[:n]]
        if sum(values) - max(values) <= rule.entropy_bound:
            count = n
    return set(clearest[: max(count, needed)])


ANY_RULE = st.one_of(
    st.just(FixedSchedule()),
    EIGHTHS.map(ConfidenceThreshold),
    st.integers(1, 40).map(lambda eighths: ConfidenceFactor(eighths / 8)),
    st.integers(1, 40).map(lambda eighths: EntropyBound(eighths / 8)),
)


@given(ANY_RULE, st.lists(ROW, min_size=1, max_size=4))
def test_rules_write_what_plain_lists_say(rule, rows):
    confidence, competing, entropy = (
        torch.tensor([[position[part] for position in positions] for positions, _, _ in rows]) for part in range(3)
    )
    planned, needed = (torch.tensor([row[part] for row in rows]) for part in (1, 2))
    got = rule.select(Offer(confidence.double(), entropy.double(), competing, planned, needed))
    assert got.dtype == torch.bool
    for marks, (positions, plan, need) in zip(got, rows, strict=True):
        assert set(marks.nonzero()[:, 0].tolist()) == reference(rule, *zip(*positions, strict=True), plan, need)


@given(ANY_RULE, st.lists(POSITION, min_size=6, max_size=6), st.integers(1, 6))
def test_asked_again_with_what_is_needed_every_rule_is_done_within_the_steps(rule, positions, steps):
    """As the loop does; the numbers do not change, so that the rules alone are at work."""
    confidence, competing, entropy = (torch.tensor([list(part)]) for part in zip(*positions, strict=True))
    masked = competing.sum(dim=1)
    for step in range(steps):
        needed = -(-competing.sum(dim=1) // (steps - step))
        planned = commits_per_step(masked, step, steps)
        competing = competing & ~rule.select(Offer(confidence.double(), entropy.double(), competing, planned, needed))
    assert not competing.any()


@pytest.mark.parametrize(
    ("rule", "saved"),
    [
        (FixedSchedule(), {"_cls_name": "FixedSchedule"}),
        (ConfidenceThreshold(0.9), {"_cls_name": "ConfidenceThreshold", "threshold": 0.9}),
        (ConfidenceFactor(2), {"_cls_name": "ConfidenceFactor", "factor": 2}),
        (EntropyBound(0.125), {"_cls_name": "EntropyBound", "entropy_bound": 0.125}),
    ],
)
def test_a_rule_is_saved_with_its_class_name_and_loaded_equal(rule, saved):
    assert rule.to_dict() == saved
    assert load_rule(saved) == rule
    assert saved["_cls_name"] in RULES  # loading leaves what it was given alone
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.threshold = 0.1


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            {"_cls_name": "EntropyBoundSamplerConfig", "entropy_bound": 0.1},
            "sampler_config has _cls_name='EntropyBoundSamplerConfig'; choose one of FixedSchedule, "
            "ConfidenceThreshold, ConfidenceFactor, EntropyBound",
        ),
        ({"threshold": 0.5}, "sampler_config has _cls_name=None; choose one of FixedSchedule"),
        (
            {"_cls_name": "ConfidenceThreshold", "treshold": 0.5},
            "sampler_config={'_cls_name': 'ConfidenceThreshold', 'treshold': 0.5} does not fit: ",
        ),
        ({"_cls_name": "EntropyBound"}, "sampler_config={'_cls_name': 'EntropyBound'} does not fit: "),
        ({"_cls_name": "ConfidenceFactor", "factor": 0}, "factor=0 must be a number above 0"),
    ],
)
def test_a_saved_rule_that_is_none_of_ours_is_refused(saved, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        load_rule(saved)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf, "0.9", None, True])
def test_a_threshold_is_a_share(value):
    with pytest.raises(ValueError, match=f"^{re.escape(f'threshold={value!r} must be a number from 0 to 1')}$"):
        ConfidenceThreshold(value)


@pytest.mark.parametrize("value", [0, 0.0, -1, math.nan, "1", None, False])
@pytest.mark.parametrize(("rule", "name"), [(ConfidenceFactor, "factor"), (EntropyBound, "entropy_bound")])
def test_factor_and_bound_are_above_zero(rule, name, value):
    with pytest.raises(ValueError, match=f"^{re.escape(f'{name}={value!r} must be a number above 0')}$"):
        rule(value)


def test_an_endless_bound_writes_everything():
    assert chosen(EntropyBound(math.inf), [0.1] * 3, entropy=[9.0, 8.0, 7.0]) == "111"
    assert chosen(ConfidenceFactor(math.inf), [0.0] * 3) == "111"
