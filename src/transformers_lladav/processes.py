"""The processes that train a model together."""

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
