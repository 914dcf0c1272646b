"""Packing: every sample in one row, positions that restart, a mask that keeps samples apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transformers_lladav.packing import NO_SAMPLE, pack_lengths, packed_mask, packed_positions


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(20, 50))
def test_every_sample_stands_in_one_row_that_holds_it(lengths, capacity):
    rows = pack_lengths(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    totals = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < total <= capacity for total in totals)
    assert all(row == sorted(row) for row in rows)
    # No two rows could be one: first fit leaves no row that fits into an earlier one.
    assert all(a + b > capacity for i, a in enumerate(totals) for b in totals[i + 1 :])


def test_longest_first_fills_rows():
    assert pack_lengths([3, 7, 5, 5, 10], 10) == [[4], [0, 1], [2, 3]]


def test_a_sample_that_fits_into_no_row_is_refused():
    with pytest.raises(ValueError, match="sample 1 has 12 tokens, but a row holds 10; make rows of 12"):
        pack_lengths([3, 12], 10)


SAMPLES = torch.tensor([[0, 0, 0, 1, 1, 2], [0, 0, NO_SAMPLE, NO_SAMPLE, NO_SAMPLE, NO_SAMPLE]])


def test_positions_restart_with_every_sample():
    assert packed_positions(SAMPLES).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 2, 3]]


def test_samples_see_themselves_only():
    mask = packed_mask(SAMPLES)
    assert mask.shape == (2, 1, 6, 6)
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2), torch.ones(1, 1)).bool()
    assert torch.equal(mask[0, 0], blocks)
    assert mask.any(dim=-1).all(), "a query that sees nothing has no attention"


def test_turns_hide_what_comes_later_within_a_sample():
    turns = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 0, 0]])
    mask = packed_mask(SAMPLES, turns)[0, 0]
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
