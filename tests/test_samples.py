"""Numbers and epochs of examples, in this process and in workers, and selections of examples by number."""

import pickle

import pytest
from torch.utils.data import DataLoader

from transformers_lladav.samples import Numbered, Sample, Selection, field_of

CHAT = [{"role": "user", "content": "Hi"}]


class Example:
    messages, source = CHAT, "train.jsonl:17"


def test_a_sample_says_index_epoch_and_source():
    data = Numbered([{"messages": CHAT}, Example()])
    assert len(data) == 2
    assert (data.epoch, data[0].epoch) == (0, 0)
    data.set_epoch(4)
    assert data.epoch == 4
    assert data[0] == Sample(CHAT, "example 0", 0, 4)
    assert data[1] == Sample(CHAT, "train.jsonl:17", 1, 4)


def test_fields_are_found_in_objects_and_dictionaries():
    assert field_of({"source": "here"}, "source") == field_of(type("X", (), {"source": "here"}), "source") == "here"
    assert field_of({}, "source") is field_of(object(), "source") is None


def only(samples):
    return [(sample.index, sample.epoch) for sample in samples]


def test_workers_that_outlive_an_epoch_see_the_next_one():
    data = Numbered([{"messages": CHAT}] * 4)
    loader = DataLoader(data, 2, num_workers=1, persistent_workers=True, collate_fn=only)
    for epoch in (0, 1, 5):
        data.set_epoch(epoch)
        assert list(loader) == [[(0, epoch), (1, epoch)], [(2, epoch), (3, epoch)]]


def test_a_selection_is_a_sequence_of_what_was_chosen():
    chosen = Selection(list("abcdef"), [4, 0, 3])
    for selection in (chosen, pickle.loads(pickle.dumps(chosen))):
        assert list(selection) == ["e", "a", "d"]
        assert (len(selection), selection[-1], selection[1:], selection[::-2]) == (3, "d", ["a", "d"], ["d", "e"])
        with pytest.raises(IndexError):
            selection[3]
    assert list(Selection(chosen, [2, 2])) == ["d", "d"]
