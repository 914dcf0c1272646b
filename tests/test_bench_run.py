"""A benchmark says what was measured on what, and its rows compare arms without giving times of a CPU."""

import json

import pytest
import torch

import transformers_lladav.bench_run as bench_run
from test_bench import TINY
from transformers_lladav.bench import Timing
from transformers_lladav.bench_run import BenchSettings, bench_rows, run_bench, write_document


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    monkeypatch.setitem(bench_run.SIZES, "small", TINY)


@pytest.fixture
def quiet():
    return lambda what: lambda done, total: None


def test_the_document_says_what_was_measured_on_what(quiet, tmp_path):
    settings = BenchSettings(arms=("official", "fast"), rounds=2, device="cpu", command="lladav bench")
    document = run_bench(settings, quiet)
    assert document["command"] == "lladav bench"
    assert document["machine"]["threads"] == torch.get_num_threads()
    assert len(document["machine"]["load"]) == 3
    assert [timing["arm"] for timing in document["timings"]] == ["official", "fast"]
    for timing in document["timings"]:
        assert len(timing["seconds"]) == document["rounds"] == 2
        assert min(timing["seconds"]) <= timing["median"] <= max(timing["seconds"])
        assert timing["sizes"]["answer"] == TINY.answer
    assert document["growth"] == document["milliseconds"] == document["vision"] == {}
    path = tmp_path / "new" / "bench.json"
    write_document(document, path)
    assert json.loads(path.read_text()) == document


def test_a_system_that_does_not_tell_its_load_is_measured_as_well(quiet, monkeypatch):
    monkeypatch.delattr(bench_run.os, "getloadavg")
    document = run_bench(BenchSettings(arms=("fast",), rounds=1, device="cpu"), quiet)
    assert document["machine"]["load"] is None


def test_growth_is_of_the_arms_that_grow(monkeypatch):
    monkeypatch.setattr(bench_run, "growth_sizes", lambda sizes: {"answer": [sizes], "batch": [sizes, sizes]})
    said = []
    settings = BenchSettings(arms=("exact",), rounds=1, growth=True, device="cpu")
    document = run_bench(settings, lambda what: said.append(what) or (lambda done, total: None))
    assert said == ["Arms in turns", "More answer", "More batch"]
    assert [timing["arm"] for timing in document["growth"]["answer"]] == ["parallel", "balanced", "fast"]
    assert len(document["growth"]["batch"]) == 6


def test_rows_compare_with_the_first_arm_and_give_no_times_of_a_cpu():
    timings = [
        {"arm": "official", "forwards": 8, "whole_forwards": 8, "median": 4.0, "tokens_per_second": 2.0},
        {"arm": "fast", "forwards": 2, "whole_forwards": 1, "median": 0.5, "tokens_per_second": 16.0},
    ]
    arms = [{"name": "official", "description": "a"}, {"name": "fast", "description": "b"}]
    document = {"timings": timings, "arms": arms, "machine": {"device": "cpu"}}
    assert bench_rows(document) == [["official", "a", "8", "8", "", "1.0"], ["fast", "b", "2", "1", "", "8.0"]]
    document["machine"]["device"] = "NVIDIA H200"
    assert [row[4] for row in bench_rows(document)] == ["2.0", "16.0"]


def test_the_time_of_a_pass_follows_from_answers():
    """A whole pass takes 50 ms; of 0.4 s, seven live ones share 350 ms."""
    exact = Timing("exact", TINY, [0.4], forwards=8, whole_forwards=8)
    fast = Timing("fast", TINY, [0.4], forwards=8, whole_forwards=1)
    compiled = Timing("compiled", TINY, [0.085], forwards=8, whole_forwards=1)
    assert bench_run.pass_milliseconds([exact, fast, compiled]) == {"whole": 50, "live": 50, "live, compiled": 5}
    assert bench_run.pass_milliseconds([exact]) == {"whole": 50}
    assert bench_run.pass_milliseconds([fast]) == {}


def test_what_is_compiled_is_for_gpus_unless_it_is_named():
    usual = [arm.name for arm in BenchSettings(device="cpu").resolve()[2]]
    assert usual == ["official", "exact", "parallel", "balanced", "fast", "autoregressive"]
    assert [arm.name for arm in BenchSettings(device="cuda", sizes="small").resolve()[2]] == [
        *usual[:5], "compiled", "autoregressive", "autoregressive_compiled",
    ]  # fmt: skip
    assert [arm.name for arm in BenchSettings(device="cpu", arms=("compiled",)).resolve()[2]] == ["compiled"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": "70b"}, "sizes='70b' are not known; choose one of small, 8b"),
        ({"device": "tpu"}, "device='tpu' is not known; choose one of auto, cpu, cuda"),
        ({"arms": ("exact", "slow")}, "there is no arm 'slow'"),
    ],
)
def test_what_is_not_known_is_refused_before_anything_is_made(settings, message, quiet):
    with pytest.raises(ValueError, match=message):
        run_bench(BenchSettings(**settings), quiet)


def test_sizes_follow_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert BenchSettings().resolve()[:2] == ("cuda", bench_run.SIZES["8b"])
    assert BenchSettings(device="cpu").resolve()[:2] == ("cpu", TINY)
