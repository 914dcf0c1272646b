"""Batches that are the same whoever takes them: orders, filling up, processes, and starting in the middle."""

import itertools
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from transformers_lladav.batches import TrainingBatches
from transformers_lladav.samples import Numbered

LENGTHS = [(7919 * index) % 1000 for index in range(1000)]


def data_of(count):
    return Numbered([{"messages": [number]} for number in range(count)])


def joined(batches, size):
    """Device batches put together to global ones."""
    flat = list(itertools.chain.from_iterable(batches))
    return [flat[start : start + size] for start in range(0, len(flat), size)]


counts, sizes, times = st.integers(1, 200), st.integers(1, 5), st.integers(1, 5)


@given(counts, sizes, times, st.integers(0, 9), st.integers(0, 3))
def test_an_epoch_is_a_shuffle_that_begins_again_to_fill_the_last_step(count, size, accumulated, seed, epoch):
    data = data_of(count)
    batches = TrainingBatches(data, size * accumulated, size, seed)
    batches.set_epoch(epoch)
    assert data.epoch == epoch
    drawn = list(batches)
    assert {len(batch) for batch in drawn} == {size}
    steps = -(-count // (size * accumulated))
    assert len(drawn) == len(batches) == steps * accumulated
    assert batches.steps == steps
    order = [index for batch in drawn for index in batch]
    assert sorted(order[:count]) == list(range(count))
    assert order[count:] == list(itertools.islice(itertools.cycle(order[:count]), len(order) - count))


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200), sizes, times, st.integers(0, 9))
def test_grouped_batches_hold_every_sample_once_and_the_longest_first(lengths, size, accumulated, seed):
    together = size * accumulated
    batches = TrainingBatches(data_of(len(lengths)), together, size, seed, lengths)
    drawn = list(batches)
    assert {len(batch) for batch in drawn} == {size}
    assert len(drawn) == len(batches) == batches.steps * accumulated
    assert lengths[drawn[0][0]] == max(lengths)
    steps = joined(drawn, together)
    for step in steps:
        found = [lengths[index] for index in step]
        assert found == sorted(found, reverse=True)
    whole = len(lengths) // together
    once = [index for step in steps[:whole] for index in step]
    assert len(set(once)) == len(once)
    missing = set(range(len(lengths))) - set(once)
    assert len(steps) == whole + bool(missing)
    if missing:
        assert missing <= set(steps[-1])
    if whole and missing:  # filled up from the start of the order, which the first step holds
        assert set(steps[-1]) - missing <= set(steps[0])


def test_orders_differ_by_epoch_and_seed_and_repeat_themselves():
    for lengths in (None, LENGTHS):
        data = Numbered(LENGTHS)
        first = list(TrainingBatches(data, 8, 2, 1, lengths))
        assert list(TrainingBatches(data, 8, 2, 1, lengths)) == first
        assert list(TrainingBatches(data, 8, 2, 2, lengths)) != first
        data.set_epoch(1)
        assert list(TrainingBatches(data, 8, 2, 1, lengths)) != first
        data.set_epoch(0)
        assert list(TrainingBatches(data, 8, 2, 1, lengths)) == first


def test_grouped_batches_are_of_similar_length_in_no_order_of_length():
    steps = joined(TrainingBatches(Numbered(LENGTHS), 8, 2, 1, LENGTHS), 8)
    # Groups of 31 batches (1000 // (8 * 4)) of 1000 even lengths: a batch of 8 spans about 8 / 248 of them.
    spans = [LENGTHS[step[0]] - LENGTHS[step[-1]] for step in steps[1:]]
    assert sorted(spans)[len(spans) // 2] < 60
    longest = [LENGTHS[step[0]] for step in steps[1:]]
    # A shuffle of n goes down in half of its n - 1 steps, give or take sqrt(n / 12).
    falls = sum(later < earlier for earlier, later in itertools.pairwise(longest))
    assert abs(falls - len(longest) / 2) < 5 * (len(longest) / 12) ** 0.5


@pytest.mark.parametrize("lengths", [None, LENGTHS[:50]], ids=["random", "grouped"])
@pytest.mark.parametrize("count", [50, 48, 3])
def test_any_number_of_devices_sees_the_same_global_batches(count, lengths):
    shard = pytest.importorskip("accelerate.data_loader").BatchSamplerShard
    chosen = None if lengths is None else lengths[:count]
    expected = joined(TrainingBatches(data_of(count), 16, 16, 3, chosen), 16)
    for processes, size in itertools.product((1, 2, 4), (1, 2, 4)):
        accumulated = 16 // (processes * size)
        batches = TrainingBatches(data_of(count), 16, size, 3, chosen)
        dealt = [list(shard(batches, processes, process)) for process in range(processes)]
        assert {len(own) for own in dealt} == {len(expected) * accumulated}
        for step, samples in enumerate(expected):
            turn = slice(step * accumulated, (step + 1) * accumulated)
            seen = [index for own in dealt for batch in own[turn] for index in batch]
            assert sorted(seen) == sorted(samples)


def numbers_of(samples):
    return [(sample.index, sample.epoch) for sample in samples]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("lengths", [None, list(range(21))], ids=["random", "grouped"])
def test_training_goes_on_in_the_middle_of_an_epoch(processes, lengths):
    accelerate = pytest.importorskip("accelerate")
    for process in range(processes):

        def prepared(process=process):
            data = data_of(21)
            loader = DataLoader(data, batch_sampler=TrainingBatches(data, 8, 2, 1, lengths), collate_fn=numbers_of)
            return accelerate.data_loader.prepare_data_loader(
                loader, num_processes=processes, process_index=process, put_on_device=False
            )

        loader, epochs = prepared(), []
        for epoch in range(3):
            loader.set_epoch(epoch)
            epochs.append(list(loader))
        assert [{epoch for batch in batches for _, epoch in batch} for batches in epochs] == [{0}, {1}, {2}]
        assert [[index for index, _ in batch] for batch in epochs[0]] != [
            [index for index, _ in batch] for batch in epochs[1]
        ]
        resumed = prepared()
        rest = accelerate.skip_first_batches(resumed, 5)
        rest.set_epoch(1)
        assert list(rest) == epochs[1][5:]
        resumed.set_epoch(2)
        assert list(resumed) == epochs[2]


def test_workers_take_the_batches_in_their_order():
    data = data_of(10)
    batches = TrainingBatches(data, 4, 2, seed=1)
    loader = DataLoader(data, batch_sampler=batches, collate_fn=numbers_of, num_workers=2, persistent_workers=True)
    for epoch in (0, 3):
        batches.set_epoch(epoch)
        assert list(loader) == [[(index, epoch) for index in batch] for batch in batches]


def test_orders_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(TrainingBatches(data_of(9), 4, 2, lengths=list(range(9))))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("count", "sizes", "lengths", "message"),
    [
        (0, (4, 2), None, "there are 0 samples to make batches of; give at least one"),
        (3, (4, 2), [1, 2], "2 lengths were given for 3 samples; give one each"),
        (3, (10, 4), None, "global_batch_size=10 is not a multiple of device_batch_size=4; pass such as 8 and 4"),
        (3, (2, 4), None, "global_batch_size=2 is not a multiple of device_batch_size=4; pass such as 4 and 4"),
        (3, (0, 4), None, "global_batch_size=0 is not a multiple of device_batch_size=4; pass such as 4 and 4"),
        (3, (4, 0), None, "global_batch_size=4 is not a multiple of device_batch_size=0; pass such as 4 and 1"),
    ],
)
def test_what_makes_no_batches_is_refused(count, sizes, lengths, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrainingBatches(data_of(count), *sizes, lengths=lengths)
