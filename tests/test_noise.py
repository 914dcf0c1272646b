"""Noise that depends on a sample's number only, even levels, and two views that hide everything once."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformers_lladav.diffusion_lladav import add_mask_noise
from transformers_lladav.noise import (
    Noise,
    complementary_views,
    fixed_noise,
    hide_blocks,
    hide_sparsely,
    numbered_generator,
    training_noise,
)

MASK, PICTURE = 92, 90


def test_every_seed_epoch_and_index_has_noise_of_its_own():
    numbers = list(itertools.product(range(12), repeat=3))
    draws = {number: tuple(torch.rand(3, generator=numbered_generator(*number)).tolist()) for number in numbers}
    assert len(set(draws.values())) == len(numbers)
    again = torch.rand(3, generator=numbered_generator(7, 1, 11))
    assert tuple(again.tolist()) == draws[7, 1, 11]


def test_training_noise_is_drawn_in_the_order_of_the_forward_pass():
    ids = torch.arange(4, 40)[None]
    level, draws = training_noise(36, torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    assert torch.equal(training_noise(36).draws, draws)
    noised = add_mask_noise(ids, ids, MASK, generator=torch.Generator().manual_seed(3))
    assert torch.equal(noised.labels != -100, draws < 0.999 * level[:, None] + 0.001)


def test_fixed_levels_are_spread_evenly_over_any_run_of_samples():
    for first in (0, 17, 100_000):
        levels = torch.cat([fixed_noise(1, 0, index).level for index in range(first, first + 100)])
        counts = torch.histc(levels, bins=10, min=0, max=1)
        assert counts.min() >= 9
        assert counts.max() <= 11


def test_fixed_noise_depends_on_seed_and_index_only():
    first, again, other, seed = (fixed_noise(50, *number) for number in ((1, 2), (1, 2), (1, 3), (2, 2)))
    assert torch.equal(first.draws, again.draws)
    assert torch.equal(first.level, again.level)
    assert torch.equal(first.level, seed.level)
    assert not torch.equal(first.draws, other.draws)
    assert not torch.equal(first.draws, seed.draws)


@given(st.integers(0, 2**31), st.integers(1, 40))
def test_two_complementary_views_hide_every_learnable_token_once(seed, length):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, 90, (1, length), generator=generator)
    labels = torch.where(torch.rand(1, length, generator=generator) < 0.6, ids, -100)
    ids[:, ::5] = PICTURE
    noise = training_noise(length, generator)
    views = complementary_views(ids, labels, noise, MASK, (PICTURE,))
    learnable = (labels != -100) & (ids != PICTURE)
    hidden = [view.input_ids == MASK for view in views]
    assert torch.equal(hidden[0] ^ hidden[1], learnable)
    assert torch.equal(hidden[0] | hidden[1], learnable)
    for view, where in zip(views, hidden, strict=True):
        assert torch.equal(view.labels, torch.where(where, labels, -100))
        assert torch.equal(view.input_ids, torch.where(where, MASK, ids))
        assert not view.loss_weights[~where].any()
    n, p = max(int(learnable.sum()), 1), float(0.999 * noise.level + 0.001)
    if p <= 0.998:
        assert views[0].loss_weights[hidden[0]].tolist() == pytest.approx([1 / (p * n)] * int(hidden[0].sum()))
        expected = [1 / ((1 - p) * n)] * int(hidden[1].sum())
        assert views[1].loss_weights[hidden[1]].tolist() == pytest.approx(expected, rel=1e-3)


def test_below_the_floor_the_second_view_counts_nothing_and_the_first_twice():
    ids = torch.arange(4, 14)[None]
    draws = torch.full((1, 10), 0.5)
    draws[0, 0] = 0.99999  # the only position that is not hidden
    first, second = complementary_views(ids, ids, Noise(torch.tensor([0.9995]), draws), MASK)
    assert (second.labels != -100).tolist() == [[True] + [False] * 9]
    assert not second.loss_weights.any()
    assert first.loss_weights[0, 1:].tolist() == pytest.approx([2 / (0.9995 * 10)] * 9, rel=1e-4)


def test_the_views_together_have_the_expected_loss_of_one():
    # Two tokens, and a loss of 1 per token that is paid only where both are hidden: 2 p^2 / (2 p) = p on average,
    # which is 1/2 over all levels. A second view with the weights of the first would give 2/3 more or less.
    ids = torch.full((40_000, 2), 5)
    generator = torch.Generator().manual_seed(0)
    noise = Noise(torch.rand(40_000, generator=generator), torch.rand(40_000, 2, generator=generator))
    one = add_mask_noise(ids, ids, MASK, generator=torch.Generator().manual_seed(1))

    def paid(view):
        both = (view.labels != -100).all(dim=1, keepdim=True)
        return float((view.loss_weights * both).sum(dim=1).mean())

    views = complementary_views(ids, ids, noise, MASK)
    assert paid(one) == pytest.approx(0.5, abs=0.01)
    assert sum(paid(view) for view in views) / 2 == pytest.approx(0.5, abs=0.01)
    weights = [float(view.loss_weights.sum(dim=1).mean()) for view in views]
    assert sum(weights) / 2 == pytest.approx(1, abs=0.1)


def test_two_views_vary_less_than_two_draws():
    # With equal losses everywhere, the sum of the weights is the loss; its spread is what training has to average out.
    ids = torch.full((20_000, 20), 5)
    generator = torch.Generator().manual_seed(0)
    noise = Noise(0.1 + 0.8 * torch.rand(20_000, generator=generator), torch.rand(20_000, 20, generator=generator))
    totals = [view.loss_weights.sum(dim=1) for view in complementary_views(ids, ids, noise, MASK)]
    together = ((totals[0] + totals[1]) / 2).var()
    assert together < (totals[0].var() + totals[1].var()) / 4


def hidden_in_blocks(written, length, block, seed, holes=0.0):
    """Two answers of some written tokens, filled up to a length, with a question before each."""
    ids = torch.arange(2 * (length + 3))[None] + 100
    labels = ids.clone()
    labels[0, :3] = labels[0, length + 3 : length + 6] = -100
    worth = torch.ones(ids.shape[1])
    worth[3 + written : 3 + length] = worth[length + 6 + written :] = 0.1
    generator = torch.Generator().manual_seed(seed)
    noised = hide_blocks(ids, labels, worth, block, MASK, generator, holes)
    return ids[0], labels[0], worth, noised


@pytest.mark.parametrize(("written", "length", "block"), [(1, 8, 8), (8, 8, 8), (11, 32, 8), (30, 30, 4), (3, 5, 8)])
def test_blocks_before_the_one_that_is_written_are_there_and_those_after_it_hidden(written, length, block):
    seen = set()
    for seed in range(300):
        ids, labels, worth, noised = hidden_in_blocks(written, length, block, seed)
        hidden, learned = noised.input_ids[0] == MASK, noised.labels[0] != -100
        assert torch.equal(noised.labels[0][learned], ids[learned])
        assert torch.equal(noised.input_ids[0][~hidden], ids[~hidden])
        assert not (hidden & (labels == -100)).any()
        assert not (learned & ~hidden).any()
        for start in (3, length + 6):
            here = slice(start, start + length)
            weights = noised.loss_weights[0, here]
            assert weights.sum().item() == pytest.approx(0.5)  # one of two answers
            assert torch.equal(weights > 0, learned[here])
            assert (weights / worth[here])[learned[here]].std(unbiased=False) < 1e-6
            answer = hidden[here]
            live = int(answer.nonzero()[0]) // block
            end = (live + 1) * block
            assert answer[end:].all()
            assert torch.equal(answer[:end], learned[here][:end])
            assert not learned[here][end:].any()
            assert live < -(-written // block)  # there is something of the answer in it
            assert not answer[: live * block].any()
            seen.add((live, int(answer[live * block : end].sum())))
    assert {live for live, _ in seen} == set(range(-(-written // block)))
    sizes = {count for live, count in seen if live == 0}
    assert sizes == set(range(1, min(block, length) + 1))


def test_half_of_the_blocks_are_hidden_whole_and_the_others_at_even_levels():
    shares = torch.tensor(
        [(hidden_in_blocks(64, 64, 64, seed)[3].labels[0, 3:67] != -100).float().mean() for seed in range(2000)]
    )
    assert (shares == 1).float().mean().item() == pytest.approx(0.5, abs=0.04)
    # Of the others the levels are even between 0.1 and 1: their mean is 0.55.
    assert shares[shares < 1].mean().item() == pytest.approx(0.55, abs=0.03)


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_a_share_of_long_answers_gets_holes_in_every_three_tokens(share):
    with_holes, places, alone = 0, torch.zeros(3), 0
    for seed in range(2000):
        noised = hidden_in_blocks(63, 72, 8, seed, share)[3]
        learned = noised.labels[0, 3:75] != -100
        if not (noised.input_ids[0, 66:75] == MASK).any():  # the end is there
            with_holes += 1
            runs = learned[:63].view(21, 3)
            assert set(runs.sum(dim=1).tolist()) <= {1, 2}
            alone += int((runs.sum(dim=1) == 2).sum())
            places += runs.sum(dim=0)
    assert with_holes / 2000 == pytest.approx(share, abs=0.04)
    assert alone / with_holes / 21 == pytest.approx(0.5, abs=0.02)
    assert (places / places.sum()).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_answers_of_one_block_get_no_holes():
    for seed in range(100):
        *_, noised = hidden_in_blocks(8, 16, 8, seed, holes=1.0)
        assert (noised.input_ids[0, 11:19] == MASK).all()


@pytest.mark.parametrize(("written", "every"), [(1, 3), (6, 3), (7, 3), (9, 1), (2, 8), (9, 4)])
def test_one_token_of_every_few_is_hidden_or_left(written, every):
    ids = torch.arange(20, 20 + 2 * written + 12)[None]
    labels, worth = torch.full_like(ids, -100), torch.ones(ids.shape[1])
    starts = (4, written + 9)  # two answers, the first with a filling of two tokens
    for start in starts:
        labels[0, start : start + written] = ids[0, start : start + written]
    labels[0, 4 + written : 6 + written], worth[4 + written : 6 + written] = 7, 0.1
    hidden, left, several = Counter(), 0, 0
    for seed in range(300):
        noised = hide_sparsely(ids, labels, worth, every, MASK, torch.Generator().manual_seed(seed))
        chosen = noised.labels[0] != -100
        assert torch.equal(noised.input_ids[0] == MASK, chosen)
        assert torch.equal(noised.input_ids[0][~chosen], ids[0][~chosen])
        assert torch.equal(noised.labels[0][chosen], ids[0][chosen])
        assert noised.loss_weights.sum().item() == pytest.approx(1.0)
        for start in starts:
            answer = chosen[start : start + written]
            for run in answer.split(every):
                assert int(run.sum()) in {1, max(len(run) - 1, 1)}
                several += len(run) > 2
                left += len(run) > 2 and int(run.sum()) > 1
            weights = noised.loss_weights[0, start : start + written][answer]
            assert weights.tolist() == pytest.approx([0.5 / len(weights)] * len(weights))
            hidden.update(answer.nonzero().flatten().tolist())
        assert not chosen[4 + written : 6 + written].any()
    assert abs(left - several / 2) <= 5 * (several / 4) ** 0.5  # five standard deviations of a binomial
    for first in range(0, written, every):
        run = range(first, min(first + every, written))
        share = 0.5 if len(run) > 1 else 1.0  # one or all others: each is hidden as often as not
        assert all(abs(hidden[place] - 600 * share) <= 5 * (600 * share * (1 - share)) ** 0.5 for place in run)
