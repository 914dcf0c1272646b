"""Long use: no memory, tensors or threads stay behind, and callers of one model do not disturb each other."""

import json
import threading
from pathlib import Path

import pytest

from endurance import KINDS, Job, endure, jobs
from transformers_lladav import asking

RESULT = json.loads((Path(__file__).parent.parent / "model_cards" / "results" / "endurance.json").read_text())
GROWTH = 0.01  # of the memory after the warm-up


@pytest.fixture(scope="module")
def assistant():
    return asking.load(device="cpu")


def check(document):
    assert document["growth_of_bytes"] < GROWTH
    assert document["more_tensors"] <= 0
    assert document["more_threads"] <= 0


def test_the_committed_run_is_a_thousand_generations_of_every_kind_without_growth():
    assert RESULT["generations"] == 1000
    assert RESULT["kinds"] == list(KINDS)
    check(RESULT)


def test_tensors_and_threads_of_generations_do_not_stay(assistant):
    document = endure(assistant, 4 * len(KINDS))
    assert (document["growth_of_bytes"] is None) != Path("/proc/self/statm").exists()
    assert document["more_tensors"] <= 0
    assert document["more_threads"] <= 0
    assert len(document["points"]) > 5


@pytest.mark.slow
def test_a_thousand_generations_do_not_grow(assistant):
    check(endure(assistant, 1000))


def test_threads_on_one_model_get_what_each_gets_alone(assistant):
    todo = [job for job in jobs(3 * len(KINDS)) if job.kind != "cancelled"]
    alone = [job.run(assistant) for job in todo]
    assert len({str(answer) for answer in alone}) > len(todo) // 2  # they differ, so that a mix-up would show
    found, errors = {}, []

    def work(part):
        try:
            for number in part:
                found[number] = todo[number].run(assistant)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(range(first, len(todo), 3),)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [found[number] for number in range(len(todo))] == alone


def test_who_cancels_leaves_the_model_as_it_was(assistant):
    job = Job("plain", 5)
    before = job.run(assistant)
    assert Job("cancelled", 5).run(assistant) == []
    assert job.run(assistant) == before
