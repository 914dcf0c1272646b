"""The processes that train a model together, and those that load their data."""

import importlib.util
import os
import signal
import threading
from typing import Any

import torch


def on_cpu(device: str = "auto") -> bool:
    """Whether a run is on CPUs; several processes find each other there only if they are told.

    Args:
        device: "auto" or "cpu".

    Returns:
        True if it is.
    """
    return device == "cpu" or not torch.accelerator.is_available()


def training_processes(device: str = "auto") -> Any:
    """Find the processes of a run, as torchrun or `accelerate launch` began them.

    Args:
        device: "auto" or "cpu".

    Returns:
        accelerate's `PartialState`.

    Raises:
        ImportError: if accelerate is missing.
    """
    if importlib.util.find_spec("accelerate") is None:
        raise ImportError("training: accelerate is missing; pip install 'transformers_lladav[train]'")
    from accelerate import PartialState

    return PartialState(cpu=on_cpu(device))


def summed(value: float) -> float:
    """Sum a number over all processes, each of which has to ask.

    Args:
        value: of this process.

    Returns:
        The sum; the number itself where there is one process.
    """
    if not torch.distributed.is_initialized():
        return value
    total = torch.tensor(float(value), device=training_processes().device)
    torch.distributed.all_reduce(total)
    return total.item()


def any_process(flag: bool) -> bool:
    """Whether a flag is set on any process, each of which has to ask.

    Args:
        flag: of this process.

    Returns:
        The same on all of them.
    """
    return summed(flag) > 0


def shield_worker(number: int) -> None:
    """Let a process that loads data end only when the one that trains says so; a `worker_init_fn`.

    torchrun, batch systems and terminals send SIGTERM or Ctrl-C to all processes at once, but a run that saves and
    stops needs its workers until then.

    Args:
        number: of the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which tells who sent a signal; macOS and Windows have none
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_the_parent, daemon=True).start()


def _end_for_the_parent() -> None:
    """Wait for SIGTERM from the process that this one was started by."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
