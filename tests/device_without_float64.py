"""A device that stands in for MPS: its tensors say so, compute on the CPU, and none of them may be float64.

As on a real device, nothing but single numbers is taken from the CPU in between. Torch's own code, which asks a device
for more than its name, takes them for tensors of the CPU; whoever asks in Python is told MPS.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, CPU = torch.device("mps"), torch.device("cpu")
READ = {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.numpy}
MOVES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


def names_device(value: Any) -> bool:
    """Whether an argument is the device."""
    return isinstance(value, torch.device | str) and str(value).split(":")[0] == DEVICE.type


def refuse(tensor: torch.Tensor, function: Any) -> None:
    """Raise what MPS raises."""
    if tensor.dtype in (torch.float64, torch.complex128):
        raise TypeError(f"{function} makes a {tensor.dtype} tensor on {DEVICE}, which has none")


class Remote(torch.Tensor):
    """A tensor of the device."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Remote":
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=CPU
        )

    @property
    def device(self) -> torch.device:
        """Where it is, for those who ask in Python."""
        return DEVICE

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:
        return f"Remote({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain = [leaf for leaf in tree_leaves((args, kwargs)) if type(leaf) is torch.Tensor and leaf.ndim]
        if plain and function not in MOVES:
            raise RuntimeError(f"{function} mixes tensors of {DEVICE} with {tuple(plain[0].shape)} of the CPU")
        inner = tree_map(inside, (args, kwargs or {}))
        result = function(*inner[0], **inner[1])
        if any(argument.alias_info and argument.alias_info.is_write for argument in function._schema.arguments):
            return args[0]
        return tree_map(lambda leaf: send(leaf, function) if isinstance(leaf, torch.Tensor) else leaf, result)


def inside(value: Any) -> Any:
    """A tensor of the device as what it computes with; anything else as it is."""
    return value.inner if isinstance(value, Remote) else value


def send(tensor: torch.Tensor, function: Any = "a copy") -> Remote:
    """Bring a tensor to the device."""
    refuse(tensor, function)
    return Remote(tensor)


class _Made(TorchFunctionMode):
    """Makes what is made on the device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in READ or (function is torch.Tensor.to and CPU in (*args[1:], *kwargs.values())):
            return function(inside(args[0]), *args[1:], **kwargs)
        if function is torch.Tensor.new_tensor and isinstance(args[0], Remote):
            return send(function(inside(args[0]), *args[1:], **kwargs), function)
        if not any(names_device(value) for value in (*args, *kwargs.values())) or not callable(function):
            return function(*args, **kwargs)
        if function is torch.Tensor.to and isinstance(args[0], Remote):  # it is there
            args = tuple(arg for arg in args if not names_device(arg))
            kwargs.pop("device", None)
            return function(*args, **kwargs) if len(args) + len(kwargs) > 1 else args[0]
        args = tuple(CPU if names_device(arg) else arg for arg in args)
        kwargs = {name: CPU if names_device(value) else value for name, value in kwargs.items()}
        result = function(*args, **kwargs)
        return send(result, function) if type(result) is torch.Tensor else result


@contextmanager
def device_without_float64(*modules: torch.nn.Module) -> Iterator[None]:
    """Have the device, and models on it.

    Args:
        *modules: are changed for good: give copies.
    """
    for module in (part for each in modules for part in each.modules()):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(send(parameter.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = send(buffer)
    with _Made():
        yield
