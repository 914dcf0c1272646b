"""The processes of a run; what needs several of them is in test_distributed."""

import importlib.util
import multiprocessing
import signal
import subprocess
import time

import pytest
import torch

from transformers_lladav.processes import any_process, on_cpu, shield_worker, summed, training_processes


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


def load(ready):
    """What a worker does."""
    shield_worker(0)
    ready.send(None)
    time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="workers cannot tell who sent a signal")
def test_a_worker_is_ended_by_its_parent_and_by_nobody_else():
    ours, theirs = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(target=load, args=(theirs,), daemon=True)
    worker.start()
    try:
        assert ours.poll(60)
        for name in ("TERM", "INT"):
            subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
        worker.join(1)
        assert worker.is_alive()
        worker.terminate()
        worker.join(30)
        assert worker.exitcode == 0
    finally:
        worker.kill()
