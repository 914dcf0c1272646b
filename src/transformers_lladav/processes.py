"""The processes of a run: those that train a model together, that load their data, that share questions out."""

import importlib.util
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from datetime import timedelta
from multiprocessing.process import BaseProcess
from typing import Any

import torch

LONGEST_WAIT = timedelta(days=7)  # for the slowest process


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


def worker_options(count: int) -> dict[str, Any]:
    """Let the processes that load data end only when the one that trains says so.

    torchrun, batch systems and terminals send SIGTERM or Ctrl-C to all processes at once, but a run that saves and
    stops needs its workers until then. They take no notice of either; their parent, if it has to, kills them.

    Args:
        count: how many load data.

    Returns:
        Arguments of `torch.utils.data.DataLoader`.
    """
    if not count:
        return {"num_workers": 0}
    context: Any = copy(multiprocessing.get_context())
    begin = context.Process

    def worker(*arguments: Any, **options: Any) -> BaseProcess:
        process = begin(*arguments, **options)
        process.terminate = process.kill
        return process

    context.Process = worker
    return {"num_workers": count, "worker_init_fn": _take_no_notice, "multiprocessing_context": context}


def _take_no_notice(number: int) -> None:
    """A `worker_init_fn`: ignore what asks a program to end."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)


class Processes:
    """Processes that answer questions, each with a model of its own, told by the environment that launchers make.

    Attributes:
        rank: number of this process.
        count: how many there are.
    """

    def __init__(self) -> None:
        self.rank, self.count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Lets processes wait for each other inside."""
        begins = self.count > 1 and not torch.distributed.is_initialized()
        if begins:
            torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        try:
            yield
        finally:
            if begins:
                torch.distributed.destroy_process_group()

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def device(self, asked: str) -> str:
        """Where the model of this process runs.

        Args:
            asked: "auto" or a torch device.

        Returns:
            What was asked for where there is one process or no GPU, else the GPU of this process, such as "cuda:1".

        Raises:
            ValueError: if several processes would share a device, or there are too few.
        """
        if self.count == 1 or asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
            return asked
        if asked not in ("auto", "cuda"):
            raise ValueError(f"device={asked!r} with {self.count} processes; leave it out: each takes its own GPU")
        local, there = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"process {local} has no GPU, because there are {there}; launch {there} processes")
        return f"cuda:{local}"
