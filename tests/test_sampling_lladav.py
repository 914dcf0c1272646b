"""Candidates, confidences and entropies are those of the distribution, and draws depend on no neighbour."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from transformers_lladav.sampling_lladav import (
    REMASKING,
    OfficialDraws,
    SampleDraws,
    SamplingSettings,
    predict,
    sample_generators,
)

NO_DRAWS = SampleDraws([])


def mask_of(*rows):
    return torch.tensor([[int(mark) for mark in row] for row in rows]).bool()


def guess(logits, rows, draws=NO_DRAWS, **settings):
    return predict(torch.tensor(logits), rows, SamplingSettings(**settings), draws)


def logs(*rows):
    """Logits of given weights; none for a weight of 0."""
    return [[math.log(weight) if weight else -math.inf for weight in row] for row in rows]


def test_the_candidate_is_the_likeliest_token_and_its_confidence_the_probability():
    # Probabilities 1/6, 2/6, 3/6, and 4/8, 3/8, 1/8.
    got = guess(logs((1, 2, 3), (4, 3, 1)), mask_of("010", "001"))
    assert got.tokens.tolist() == [[0, 2, 0], [0, 0, 0]]
    assert got.confidence[0, 1].item() == pytest.approx(0.5, rel=1e-6)
    assert got.confidence[1, 2].item() == pytest.approx(0.5, rel=1e-6)
    assert got.confidence.dtype == torch.float64


def test_unwritable_tokens_are_never_candidates_and_take_no_probability():
    got = guess(logs((0, 1, 3)), mask_of("1"))
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
        got = guess(logits, mask_of("1"), draws, temperature=0.5)
        assert got.tokens.item() == winner
        # The confidence is that of the logits without noise.
        assert got.confidence.item() == pytest.approx((2 / 3, 1 / 3)[winner], rel=1e-6)
    assert draws.asked == [("tokens", 1, 2)]


def test_random_remasking_ranks_by_the_draws_and_keeps_the_likeliest_token():
    draws = FixedDraws(positions=[[0.3, 0.7]])
    got = guess([[0.0, 1.0]], mask_of("01"), draws, remasking="random")
    assert got.tokens.tolist() == [[0, 1]]
    assert got.confidence[0].tolist() == pytest.approx([0.3, 0.7])
    assert draws.asked == [("positions", (1, 2))]


def test_both_kinds_of_draws_are_asked_for_tokens_first():
    draws = FixedDraws(tokens=[[0.5, 0.5]], positions=[[0.3, 0.7]])
    guess([[0.0, 1.0]], mask_of("01"), draws, temperature=1.0, remasking="random")
    assert [kind for kind, *_ in draws.asked] == ["tokens", "positions"]


def shares_of(weights, **settings):
    """How often each of some weighted tokens is sampled in 8000 draws."""
    draws = SampleDraws([torch.Generator().manual_seed(0)])
    got = guess(logs(weights) * 8000, torch.ones(1, 8000, dtype=torch.bool), draws, **settings)
    return (got.tokens[0].bincount(minlength=len(weights)) / 8000).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [1 / 16, 2 / 16, 5 / 16, 8 / 16]),
        # p to the power of 1 / T: 1, 4, 25, 64.
        ({"temperature": 0.5}, [1 / 94, 4 / 94, 25 / 94, 64 / 94]),
        ({"temperature": 1.0, "top_k": 3}, [0, 2 / 15, 5 / 15, 8 / 15]),
        ({"temperature": 1.0, "top_k": 9}, [1 / 16, 2 / 16, 5 / 16, 8 / 16]),
        ({"temperature": 1.0, "top_k": 1}, [0, 0, 0, 1]),
        # 8/16 + 5/16 = 0.8125; with the power of 1 / T 64/94 = 0.68 and 89/94 = 0.947.
        ({"temperature": 1.0, "top_p": 0.8}, [0, 0, 5 / 13, 8 / 13]),
        ({"temperature": 1.0, "top_p": 0.82}, [0, 2 / 15, 5 / 15, 8 / 15]),
        ({"temperature": 0.5, "top_p": 0.68}, [0, 0, 0, 1]),
        ({"temperature": 0.5, "top_p": 0.95}, [0, 4 / 93, 25 / 93, 64 / 93]),
        ({"temperature": 1.0, "top_p": 1.0}, [1 / 16, 2 / 16, 5 / 16, 8 / 16]),
        ({"temperature": 1.0, "top_p": 0.0001}, [0, 0, 0, 1]),
        # top_p counts what top_k left: 8/15 + 5/15 = 0.867.
        ({"temperature": 1.0, "top_k": 3, "top_p": 0.86}, [0, 0, 5 / 13, 8 / 13]),
    ],
    ids=str,
)
def test_gumbel_max_samples_the_distribution(settings, expected):
    shares = shares_of((1, 2, 5, 8), **settings)
    assert shares == pytest.approx(expected, abs=0.02)
    assert [share == 0 for share in shares] == [share == 0 for share in expected]


def test_unwritable_tokens_are_never_sampled():
    assert shares_of((0, 1, 3, 0), temperature=1.0) == pytest.approx([0, 0.25, 0.75, 0], abs=0.02)
    assert shares_of((0, 1, 3, 0), temperature=1.0, top_k=4)[::3] == [0, 0]
    assert shares_of((0, 1, 3, 0), temperature=1.0, top_p=1.0)[::3] == [0, 0]


@pytest.mark.parametrize("temperature", [0.001, 1.0, 1000.0])
@pytest.mark.parametrize("offset", [-5000.0, 0.0, 5000.0])
def test_sampling_stays_in_the_range_of_numbers(temperature, offset):
    """Processors and guidance can lift logits beyond what exp can hold, and powers of -ln u leave it too."""
    logits = [[-math.inf, offset, -math.inf, offset + temperature * math.log(3.0)]] * 4000
    draws = SampleDraws([torch.Generator().manual_seed(0)])
    got = guess(logits, torch.ones(1, 4000, dtype=torch.bool), draws, temperature=temperature)
    shares = got.tokens[0].bincount(minlength=4) / 4000
    # Logits are float32 here: near 5000 they are known to 1/4096, which at the lowest temperature is a factor 1.3.
    assert shares.tolist() == pytest.approx([0, 0.25, 0, 0.75], abs=0.08)


# Distinct logits: what happens to equal ones at the border of a nucleus is left to the sort.
LOGITS = st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True).map(
    lambda values: [value / 10 for value in values]
)


def reachable(logits, **settings):
    """Tokens that win when the noise favours them, and only them, as much as it can."""
    count = len(logits)
    uniforms = torch.full((count, count), 1e-300, dtype=torch.float64).fill_diagonal_(1 - 1e-15)
    rows = torch.ones(1, count, dtype=torch.bool)
    got = guess([logits] * count, rows, FixedDraws(tokens=uniforms.tolist()), **settings)
    return {token for token in range(count) if got.tokens[0, token] == token}


@given(LOGITS, st.one_of(st.none(), st.integers(1, 9)), st.one_of(st.none(), st.floats(0.01, 1)), st.data())
def test_the_tokens_sampled_among_are_those_of_a_plain_count(logits, top_k, top_p, data):
    temperature = data.draw(st.sampled_from([0.5, 1.0, 2.0]))
    banned = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    ranked = sorted(set(range(len(logits))) - banned, key=lambda token: -logits[token])[:top_k]
    weights = [math.exp(logits[token] / temperature) for token in ranked]
    kept, total = [], 0.0
    for token, weight in zip(ranked, weights, strict=True):
        if top_p is None or total < top_p * sum(weights):
            kept.append(token)
        total += weight
        assume(top_p is None or abs(total / sum(weights) - top_p) > 1e-6)
    given_logits = [-math.inf if token in banned else value for token, value in enumerate(logits)]
    assert reachable(given_logits, temperature=temperature, top_k=top_k, top_p=top_p) == set(kept)


def test_tokens_as_likely_as_the_last_of_the_top_k_stay():
    """As in transformers; the candidate that sampling takes is one of them."""
    assert reachable([1.0, 0.0, 1.0, 1.0], temperature=1.0, top_k=2) == {0, 2, 3}


def test_a_sampled_candidate_leaves_the_likeliest_and_its_probability_is_of_all_tokens():
    draws = FixedDraws(tokens=[[1 - 1e-15, 1e-300, 1e-300]])
    got = guess(logs((2, 5, 1)), mask_of("1"), draws, temperature=1.0, top_k=2)
    assert (got.tokens.item(), got.likeliest.item()) == (0, 1)
    assert got.confidence.item() == pytest.approx(2 / 8)
    plain = guess(logs((2, 5, 1)), mask_of("1"))
    assert (plain.tokens.item(), plain.likeliest.item()) == (1, 1)


def test_a_margin_is_the_gap_between_the_two_likeliest_tokens():
    got = guess(logs((1, 5, 2), (4, 0, 4), (0, 0, 7)), mask_of("1101"), remasking="margin")
    assert got.confidence[0].tolist() == pytest.approx([3 / 8, 0, 0, 1])
    assert got.confidence[0, 2] == 0
    # Whatever is sampled, the gap is that of the distribution.
    draws = FixedDraws(tokens=[[1 - 1e-15, 1e-300, 1e-300]])
    assert guess(logs((1, 5, 2)), mask_of("1"), draws, temperature=1.0, remasking="margin").confidence.item() == (
        pytest.approx(3 / 8)
    )


def test_entropies_are_those_of_uniform_choices():
    got = guess(logs((1, 1, 1, 1), (3, 0, 3, 0), (0, 0, 2, 0)), mask_of("1011"), needs_entropy=True)
    assert got.entropy[0].tolist() == pytest.approx([math.log(4), 0, math.log(2), 0], abs=1e-12)
    rated = guess(logs((1, 1, 1, 1), (3, 0, 3, 0), (0, 0, 2, 0)), mask_of("1011"), remasking="entropy")
    assert rated.confidence[0].tolist() == pytest.approx([-math.log(4), 0, -math.log(2), 0], abs=1e-12)
    assert rated.entropy is None


def test_a_temperature_changes_the_entropy_that_is_offered_but_no_confidence():
    """At temperature 1/2 weights 1 and 2 are 1 and 4; top_k does not count."""
    draws = FixedDraws(tokens=[[1e-300, 1 - 1e-15]])
    settings = {"temperature": 0.5, "top_k": 1, "needs_entropy": True}
    got = guess(logs((1, 2)), mask_of("1"), draws, **settings)
    assert got.entropy.item() == pytest.approx(math.log(5) - 0.8 * math.log(4))
    assert got.confidence.item() == pytest.approx(2 / 3)
    got = guess(logs((1, 2)), mask_of("1"), draws, **settings, remasking="entropy")
    assert got.confidence.item() == pytest.approx(-(math.log(3) - 2 / 3 * math.log(2)))


@pytest.mark.parametrize("remasking", [name for name in REMASKING if name != "random"])
def test_nothing_is_drawn_where_nothing_is_random(remasking):
    draws = FixedDraws()
    guess([[0.0, 1.0]], mask_of("01"), draws, remasking=remasking, needs_entropy=True)
    assert draws.asked == []


def test_equal_logits_give_the_first_token():
    assert guess([[1.0, 2.0, 2.0]], mask_of("1")).tokens.item() == 1


def test_where_nothing_is_masked_nothing_is_predicted():
    got = predict(torch.zeros(0, 5), mask_of("00", "00"), SamplingSettings(needs_entropy=True), NO_DRAWS)
    for values in (got.tokens, got.likeliest, got.confidence, got.entropy):
        assert values.tolist() == [[0, 0], [0, 0]]


def test_confidences_do_not_depend_on_the_precision_of_the_head():
    logits = torch.tensor([[24.0, 0.0, -3.0]])
    rough, fine = (
        predict(logits.to(dtype), mask_of("1"), SamplingSettings(), NO_DRAWS)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert rough.confidence.item() == fine.confidence.item() < 1.0


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


def test_positions_are_drawn_for_what_is_masked_and_for_nothing_else():
    rows = mask_of("0110", "0000", "1001")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]
    got = SampleDraws(generators).positions(rows)
    for index, seed in enumerate((1, 2, 3)):
        fresh = torch.rand(int(rows[index].sum()), generator=torch.Generator().manual_seed(seed))
        assert torch.equal(got[index][rows[index]], fresh)
    assert (got[~rows] == 0).all()


def test_generators_are_seeded_in_order_from_one():
    first, second = (sample_generators(torch.Generator().manual_seed(5), 3, torch.device("cpu")) for _ in range(2))
    seeds = torch.randint(2**63 - 1, (3,), generator=torch.Generator().manual_seed(5)).tolist()
    assert [item.initial_seed() for item in first] == [item.initial_seed() for item in second] == seeds
    # More samples leave the seeds of the first ones as they are.
    more = sample_generators(torch.Generator().manual_seed(5), 4, torch.device("cpu"))
    assert [item.initial_seed() for item in more[:3]] == seeds


def test_without_a_generator_the_global_one_seeds():
    torch.manual_seed(11)
    first = sample_generators(None, 2, torch.device("cpu"))
    torch.manual_seed(11)
    assert [item.initial_seed() for item in sample_generators(None, 2, torch.device("cpu"))] == [
        item.initial_seed() for item in first
    ]


def test_generators_that_are_given_are_used_and_counted():
    given_ones = [torch.Generator(), torch.Generator()]
    assert sample_generators(given_ones, 2, torch.device("cpu")) == given_ones
    assert sample_generators(tuple(given_ones), 2, torch.device("cpu")) == given_ones
    with pytest.raises(ValueError, match=r"^generator has 2 entries for a batch of 3; pass one per sample$"):
        sample_generators(given_ones, 3, torch.device("cpu"))
