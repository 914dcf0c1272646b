"""What happens around steps, with a stand-in for the model and Trainer's own state."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from transformers_lladav import training_callbacks
from transformers_lladav.training_callbacks import (
    AssertTrainable,
    EvaluateAtEnd,
    GuardGradients,
    Report,
    StopOnSignal,
)

ARGS = SimpleNamespace(fp16=False, eval_strategy="steps")


@pytest.fixture
def state():
    return TrainerState(global_step=4, max_steps=8)


@pytest.fixture
def control():
    return TrainerControl()


def test_what_trains_is_asserted(state, control):
    model = nn.Linear(2, 2)
    AssertTrainable({"weight", "bias"}).on_train_begin(ARGS, state, control, model=model)
    model.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="1 are frozen: bias"):
        AssertTrainable({"weight", "bias"}).on_train_begin(ARGS, state, control, model=model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_gradient_that_is_no_number(value, state, control):
    model, guard = nn.Linear(2, 2), GuardGradients()
    guard.on_pre_optimizer_step(ARGS, state, control, model=model)  # there are no gradients yet
    model(torch.ones(1, 2)).sum().backward()
    guard.on_pre_optimizer_step(ARGS, state, control, model=model)
    model.weight.grad[1, 0] = value
    with pytest.raises(FloatingPointError, match="a gradient is not finite at step 5, although the loss is"):
        guard.on_pre_optimizer_step(ARGS, state, control, model=model)
    scaled = SimpleNamespace(fp16=True)  # the scaler of fp16 looks for them and skips the step
    guard.on_pre_optimizer_step(scaled, state, control, model=model)


def test_infinities_of_both_signs_are_found(state, control):
    model = nn.Linear(2, 2)
    model.weight.grad = torch.tensor([[float("inf"), 0.0], [float("-inf"), 0.0]])
    with pytest.raises(FloatingPointError):
        GuardGradients().on_pre_optimizer_step(ARGS, state, control, model=model)


@pytest.mark.parametrize(
    ("step", "strategy", "asked"), [(7, "steps", False), (8, "steps", True), (9, "steps", True), (8, "no", False)]
)
def test_the_last_step_is_evaluated(step, strategy, asked, control):
    state = TrainerState(global_step=step, max_steps=8)
    EvaluateAtEnd().on_step_end(SimpleNamespace(eval_strategy=strategy), state, control)
    assert control.should_evaluate is asked


# Signals


@pytest.fixture
def stop(state, control):
    callback = StopOnSignal(lambda flag: flag)
    callback.on_train_begin(ARGS, state, control)
    yield callback
    callback.release()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_and_saves(number, stop, state, control):
    control.should_evaluate = True
    stop.on_step_end(ARGS, state, control)
    assert (control.should_save, control.should_training_stop) == (False, False)
    os.kill(os.getpid(), number)
    assert control.should_training_stop is False  # the step is finished first
    stop.on_step_end(ARGS, state, control)
    assert (control.should_save, control.should_training_stop, control.should_evaluate) == (True, True, False)
    assert stop.received == signal.Signals(number).name


def test_a_second_ctrl_c_stops_at_once(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # schedulers repeat themselves
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_given_back(state, control):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    callback = StopOnSignal(lambda flag: flag)
    callback.on_train_begin(ARGS, state, control)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    callback.on_train_end(ARGS, state, control)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_to_another_process_stops_this_one(state, control):
    callback = StopOnSignal(lambda flag: True)
    callback.on_step_end(ARGS, state, control)
    assert control.should_training_stop
    assert callback.received == "a signal to another process"


# Figures


def test_figures_are_told_and_written(tmp_path, state, control):
    steps, figures = [], []
    report = Report(tmp_path, lambda *given: steps.append(given), figures.append)
    report.on_train_begin(ARGS, state, control)
    state.log_history.append({"loss": 1.5, "step": 4})
    report.on_log(ARGS, state, control)
    report.on_step_end(ARGS, state, control)
    assert steps == [(4, 8), (4, 8)]
    (record,) = figures
    assert (record["loss"], record["step"]) == (1.5, 4)
    assert record["seconds"] >= 0
    assert record["cpu_seconds"] >= 0
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == figures


def test_seconds_go_on_where_an_interrupted_run_was_saved(tmp_path, state, control):
    state.log_history = [{"loss": 2.0, "step": 3, "seconds": 100.0, "cpu_seconds": 150.0}]
    report = Report(tmp_path)
    report.on_train_begin(ARGS, state, control)
    state.log_history.append({"loss": 1.5, "step": 4})
    report.on_log(ARGS, state, control)
    assert 100 <= state.log_history[-1]["seconds"] < 160
    assert 150 <= state.log_history[-1]["cpu_seconds"] < 210


def test_cpu_seconds_are_those_of_all_processes(tmp_path, state, control, monkeypatch):
    times = iter([(0.0, 0.0), (0.0, 0.0), (10.0, 7.0)])
    monkeypatch.setattr(training_callbacks, "_times", lambda: next(times))
    monkeypatch.setattr(training_callbacks, "summed", lambda own: own + 5.0)  # what another one took
    report = Report(tmp_path)
    report.on_train_begin(ARGS, state, control)
    state.log_history.append({"loss": 1.5, "step": 4})
    report.on_log(ARGS, state, control)
    assert (state.log_history[-1]["seconds"], state.log_history[-1]["cpu_seconds"]) == (10.0, 12.0)


def test_figures_of_steps_that_are_done_again_are_forgotten(tmp_path, state, control):
    (tmp_path / "log.jsonl").write_text('{"loss": 2.0, "step": 4}\n{"loss": 1.0, "step": 5}\n')
    state.log_history = [{"loss": 2.0, "step": 4}]
    Report(tmp_path).on_train_begin(ARGS, state, control)
    assert (tmp_path / "log.jsonl").read_text() == '{"loss": 2.0, "step": 4}\n'


def test_only_the_main_process_writes(tmp_path, control):
    state = TrainerState(global_step=4, max_steps=8, is_world_process_zero=False, log_history=[{"loss": 1.0}])
    told = []
    report = Report(tmp_path, lambda *given: told.append(given), told.append)
    for event in (report.on_train_begin, report.on_step_end, report.on_log):
        event(ARGS, state, control)
    assert told == []
    assert list(tmp_path.iterdir()) == []
