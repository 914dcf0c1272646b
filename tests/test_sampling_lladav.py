"""The pieces of a step: how many to commit, which ones, what is predicted, and where an answer stops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformers_lladav.sampling_lladav import (
    OfficialDraws,
    SampleDraws,
    commits_per_step,
    leftmost_match,
    most_confident,
    predict,
    sequence_stop,
    token_stop,
)

NO_DRAWS = SampleDraws([])
CANVAS = st.lists(st.integers(0, 3), min_size=1, max_size=12)
SEQUENCE = st.lists(st.integers(0, 3), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("masked", "steps", "expected"),
    [
        (8, 8, [1] * 8),
        (8, 4, [2] * 4),
        (24, 10, [3, 3, 3, 3, 2, 2, 2, 2, 2, 2]),
        (10, 3, [4, 3, 3]),
        (8, 1, [8]),
        (1, 1, [1]),
    ],
)
def test_commits_are_spread_evenly_and_the_first_steps_take_the_rest(masked, steps, expected):
    assert commits_per_step(masked, steps) == expected


@given(st.integers(1, 500), st.integers(1, 500))
def test_commits_sum_to_the_masks_and_never_grow(masked, steps):
    counts = commits_per_step(masked, steps)
    assert len(counts) == steps
    assert sum(counts) == masked
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


def mask_of(*rows):
    return torch.tensor([[int(mark) for mark in row] for row in rows]).bool()


def test_the_most_confident_competing_positions_are_chosen():
    confidence = torch.tensor([[0.9, 0.1, 0.8, 0.5], [0.9, 0.1, 0.8, 0.5]])
    chosen = most_confident(confidence, mask_of("0111", "1111"), 2)
    assert chosen.tolist() == mask_of("0011", "1010").tolist()


def test_where_fewer_compete_only_those_are_chosen():
    confidence = torch.tensor([[0.9, 0.1, 0.8, 0.5], [0.9, 0.1, 0.8, 0.5]])
    assert most_confident(confidence, mask_of("0100", "0000"), 3).tolist() == mask_of("0100", "0000").tolist()
    assert most_confident(confidence, mask_of("1111", "1111"), 9).all()


def test_ties_still_give_exactly_the_number_asked_for():
    confidence = torch.ones(2, 6, dtype=torch.float64)
    chosen = most_confident(confidence, mask_of("111111", "011110"), 3)
    assert chosen.sum(dim=1).tolist() == [3, 3]
    assert not (chosen & ~mask_of("111111", "011110")).any()


def test_a_confidence_of_zero_beats_a_position_that_does_not_compete():
    chosen = most_confident(torch.tensor([[0.0, 0.9, 0.0]]), mask_of("101"), 2)
    assert chosen.tolist() == mask_of("101").tolist()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=20), st.integers(0, 25))
def test_chosen_positions_compete_are_counted_and_beat_the_others(positions, count):
    confidence = torch.tensor([[value for value, _ in positions]], dtype=torch.float64)
    competing = torch.tensor([[flag for _, flag in positions]])
    chosen = most_confident(confidence, competing, count)
    assert not (chosen & ~competing).any()
    assert int(chosen.sum()) == min(count, int(competing.sum()))
    left = competing & ~chosen
    if chosen.any() and left.any():
        assert confidence[chosen].min() >= confidence[left].max()


def guess(logits, rows, suppressed=(), temperature=0.0, remasking="low_confidence", draws=NO_DRAWS):
    suppressed = torch.tensor(suppressed, dtype=torch.long)
    return predict(torch.tensor(logits), rows, suppressed, temperature, remasking, draws)


def test_the_candidate_is_the_likeliest_token_and_its_confidence_the_probability():
    # Probabilities 1/6, 2/6, 3/6, and 4/8, 3/8, 1/8.
    logits = [[math.log(part) for part in row] for row in ((1, 2, 3), (4, 3, 1))]
    got = guess(logits, mask_of("010", "001"))
    assert got.tokens.tolist() == [[0, 2, 0], [0, 0, 0]]
    assert got.confidence[0, 1].item() == pytest.approx(0.5, rel=1e-6)
    assert got.confidence[1, 2].item() == pytest.approx(0.5, rel=1e-6)
    assert got.confidence.dtype == torch.float64


def test_suppressed_tokens_are_never_candidates_and_take_no_probability():
    logits = [[math.log(part) for part in (6, 1, 3)]]
    got = guess(logits, mask_of("1"), suppressed=[0])
    assert got.tokens.item() == 2
    assert got.confidence.item() == pytest.approx(0.75, rel=1e-6)


def test_saturated_confidences_still_differ():
    # In float32 both probabilities are 1.0; the second is nearer to it by 4e-11.
    got = guess([[24.0, 0.0], [25.0, 0.0]], mask_of("11"))
    assert got.confidence[0, 1] > got.confidence[0, 0]
    assert got.confidence.float().unique().tolist() == [1.0]


class FixedDraws:
    """Hands out given numbers and notes what was asked for."""

    def __init__(self, tokens=None, positions=None):
        self.given = {"tokens": tokens, "positions": positions}
        self.asked = []

    def tokens(self, rows, vocabulary):
        self.asked.append(("tokens", int(rows.sum()), vocabulary))
        return torch.tensor(self.given["tokens"], dtype=torch.float64)

    def positions(self, rows):
        self.asked.append(("positions", tuple(rows.shape)))
        return torch.tensor(self.given["positions"])


def test_a_temperature_divides_by_powers_of_minus_log_u():
    # exp(logit) / (-ln u)^T: 2 / 1 against 1 / 0.25^0.5 = 2; a little more noise decides.
    logits = [[math.log(2.0), 0.0]]
    for noise, winner in ((0.26, 0), (0.24, 1)):
        draws = FixedDraws(tokens=[[math.exp(-1.0), math.exp(-noise)]])
        got = guess(logits, mask_of("1"), temperature=0.5, draws=draws)
        assert got.tokens.item() == winner
        # The confidence is that of the logits without noise.
        assert got.confidence.item() == pytest.approx((2 / 3, 1 / 3)[winner], rel=1e-6)
    assert draws.asked == [("tokens", 1, 2)]


def test_random_remasking_ranks_by_the_draws_and_keeps_the_likeliest_token():
    draws = FixedDraws(positions=[[0.3, 0.7]])
    got = guess([[0.0, 1.0]], mask_of("01"), remasking="random", draws=draws)
    assert got.tokens.tolist() == [[0, 1]]
    assert got.confidence[0].tolist() == pytest.approx([0.3, 0.7])
    assert draws.asked == [("positions", (1, 2))]


def test_both_kinds_of_draws_are_asked_for_tokens_first():
    draws = FixedDraws(tokens=[[0.5, 0.5]], positions=[[0.3, 0.7]])
    guess([[0.0, 1.0]], mask_of("01"), temperature=1.0, remasking="random", draws=draws)
    assert [kind for kind, *_ in draws.asked] == ["tokens", "positions"]


def test_gumbel_max_at_temperature_one_samples_the_distribution():
    logits = torch.tensor([math.log(part) for part in (1.0, 2.0, 5.0)]).repeat(8000, 1)
    draws = SampleDraws([torch.Generator().manual_seed(0)])
    rows = torch.ones(1, 8000, dtype=torch.bool)
    got = predict(logits, rows, torch.tensor([], dtype=torch.long), 1.0, "low_confidence", draws)
    shares = got.tokens[0].bincount(minlength=3) / 8000
    assert shares.tolist() == pytest.approx([0.125, 0.25, 0.625], abs=0.02)


def test_no_sample_depends_on_its_neighbours_draws():
    rows = mask_of("110", "111")

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    both = SampleDraws(generators())
    tokens, positions = both.tokens(rows, 7), both.positions(rows)
    for index, span in enumerate((slice(0, 2), slice(2, 5))):
        alone = SampleDraws(generators()[index : index + 1])
        assert torch.equal(alone.tokens(rows[index : index + 1], 7), tokens[span])
        assert torch.equal(alone.positions(rows[index : index + 1]), positions[index : index + 1])


def test_official_draws_cover_the_whole_sequence_and_vocabulary():
    draws = OfficialDraws(torch.Generator().manual_seed(4), length=9, block_start=3)
    tokens, positions = draws.tokens(mask_of("0110"), 11), draws.positions(mask_of("0110"))
    same = torch.Generator().manual_seed(4)
    whole = torch.rand(1, 9, 11, dtype=torch.float64, generator=same)
    assert torch.equal(tokens, whole[0, [4, 5]])
    assert torch.equal(positions, torch.rand(1, 9, generator=same)[:, 3:7])


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
