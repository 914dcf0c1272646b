"""The processes of a run; what needs several of them is in test_distributed."""

import pytest
import torch

from transformers_lladav.processes import any_process, on_cpu, summed


@pytest.mark.parametrize(
    ("device", "there", "expected"), [("auto", False, True), ("auto", True, False), ("cpu", True, True)]
)
def test_a_run_is_on_a_cpu_where_there_is_nothing_else_or_it_is_told_so(device, there, expected, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: there)
    assert on_cpu(device) is expected


def test_one_process_is_all_of_them():
    assert summed(2.5) == 2.5
    assert [any_process(flag) for flag in (True, False)] == [True, False]
