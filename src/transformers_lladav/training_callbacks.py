"""What happens around the steps of a run: assertions, guards, signals, records."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from .files import write_text
from .processes import summed
from .trainable import check_trainable

LOG = "log.jsonl"


class AssertTrainable(TrainerCallback):
    """Asserts at the start, also of a resumed run, that exactly what the recipe says will train.

    Args:
        expected: names of the parameters.
    """

    def __init__(self, expected: set[str]) -> None:
        self.expected = expected

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise if it is not so."""
        check_trainable(kwargs["model"], self.expected)


class GuardGradients(TrainerCallback):
    """Stops before gradients that are no numbers get into the weights. With fp16, the loss scaler skips such steps."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise if a gradient is not finite."""
        if args.fp16:
            return
        gradients = [parameter.grad for parameter in kwargs["model"].parameters() if parameter.grad is not None]
        local = [gradient.to_local() if hasattr(gradient, "to_local") else gradient for gradient in gradients]
        if local and not torch.isfinite(
            torch.stack([part.detach().float().sum() for part in local if part.numel()]).sum()
        ):
            raise FloatingPointError(
                f"a gradient is not finite at step {state.global_step + 1}, although the loss is; the weights were "
                "not changed, and the last checkpoint stays. Lower learning_rate, or compute in another precision "
                "(--set precision=fp32)"
            )


class EvaluateAtEnd(TrainerCallback):
    """Has the last step evaluated too, so that the best checkpoint can be the last one."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for an evaluation at the last step."""
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True


class StopOnSignal(TrainerCallback):
    """Saves and stops after the current step when SIGTERM or Ctrl-C comes; a second Ctrl-C stops at once.

    Args:
        any_process: tells whether a flag is set on any process of the run.

    Attributes:
        received: name of the signal, if one came.
    """

    def __init__(self, any_process: Callable[[bool], bool]) -> None:
        self.any_process = any_process
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if a signal came to any process."""
        if self.any_process(self.received is not None):
            self.received = self.received or "a signal to another process"
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False  # whoever sends SIGTERM does not wait for long

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen no more."""
        self.release()

    def release(self) -> None:
        """Give the signals back to whoever had them before."""
        while self._previous:
            signal.signal(*self._previous.popitem())


def _times() -> tuple[float, float]:
    """Seconds on the clock, and of processors."""
    return time.monotonic(), sum(os.times()[:4])


class Report(TrainerCallback):
    """Tells a caller how far a run is, and keeps all figures in `log.jsonl`.

    Every record also has the `seconds` that the run took so far and its `cpu_seconds`, those of the processes that
    train and of such as have ended, both without what came to nothing because the run was interrupted.

    Args:
        folder: of the run.
        on_step: gets the step and how many there are.
        on_figures: gets what was logged.
    """

    def __init__(
        self,
        folder: Path,
        on_step: Callable[[int, int], None] | None = None,
        on_figures: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.folder, self.on_step, self.on_figures = folder, on_step, on_figures
        self._since, self._before = _times(), (0.0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell where the run begins, which is not at 0 if it is resumed, and forget figures of steps after that."""
        self._since = _times()
        if state.log_history:
            self._before = tuple(state.log_history[-1].get(name, 0.0) for name in ("seconds", "cpu_seconds"))
        if state.is_world_process_zero:
            write_text(self.folder / LOG, "".join(json.dumps(record) + "\n" for record in state.log_history))
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell the step."""
        if self.on_step is not None and state.is_world_process_zero:
            self.on_step(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell figures and write them down."""
        clock, processors = (now - since for now, since in zip(_times(), self._since, strict=True))
        processors = summed(processors)  # every process logs at the same steps
        if not state.is_world_process_zero or not state.log_history:
            return
        record = state.log_history[-1]
        taken = [self._before[0] + clock, self._before[1] + processors]
        record |= {"seconds": round(taken[0], 1), "cpu_seconds": round(taken[1], 1)}
        with (self.folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.on_figures is not None:
            self.on_figures(record)
