"""One process is all of a run where there are no others, and those that load data end with it alone."""

import importlib.util
import multiprocessing
import signal
import subprocess
import time

import pytest
import torch

from transformers_lladav.processes import any_process, on_cpu, summed, training_processes, worker_options


@pytest.mark.parametrize(
    ("device", "there", "expected"), [("auto", False, True), ("auto", True, False), ("cpu", True, True)]
)
def test_a_run_is_on_a_cpu_where_there_is_nothing_else_or_it_is_told_so(device, there, expected, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    assert on_cpu(device) is expected


def test_one_process_is_all_of_them():
    assert summed(2.5) == 2.5
    assert [any_process(flag) for flag in (True, False)] == [True, False]


def test_training_without_accelerate_says_what_to_install(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "accelerate" else find(name))
    with pytest.raises(ImportError, match=r"accelerate is missing; pip install 'transformers_lladav\[train\]'"):
        training_processes()


def load(begin, ready):
    """What a worker does."""
    begin(0)
    ready.send(None)
    time.sleep(60)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_worker_is_ended_by_its_parent_and_by_nobody_else(method, monkeypatch):
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    options = worker_options(1)
    ours, theirs = multiprocessing.Pipe()
    arguments = (options["worker_init_fn"], theirs)
    worker = options["multiprocessing_context"].Process(target=load, args=arguments, daemon=True)
    worker.start()
    try:
        assert ours.poll(60)
        for name in ("TERM", "INT", "TERM"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        worker.join(1)
        assert worker.is_alive()
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == -signal.SIGKILL
    finally:
        worker.kill()


def test_workers_load_data():
    loader = torch.utils.data.DataLoader([1, 2, 3], batch_size=None, **worker_options(2))
    assert list(loader) == [1, 2, 3]


def test_without_workers_data_is_loaded_by_the_run_itself():
    assert list(torch.utils.data.DataLoader([1, 2], batch_size=None, **worker_options(0))) == [1, 2]
