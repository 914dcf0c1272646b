"""A model with its processor: loaded, given chats, switched from adapter to adapter."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from . import BUNDLED_CHECKPOINT
from .adapters import attach_adapter, load_processor, load_with_adapter
from .quantization import is_quantized, quantization_config
from .recording import Recorder


@dataclass
class Assistant:
    """A model with its processor.

    Attributes:
        model: a LLaDA-V in evaluation mode.
        processor: its processor.
        adapter: the PEFT adapter that answers now, as `load` and `switch_adapter` were given it; None for none.
    """

    model: Any
    processor: Any
    adapter: str | Path | None = None

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def mask_token_id(self) -> int:
        """What stands for a token that is not known yet."""
        return int(self.model.config.mask_token_id)

    @property
    def end_token_ids(self) -> list[int]:
        """What ends a message."""
        ends = self.model.config.text_config.eos_token_id
        return list(ends) if isinstance(ends, list) else [ends]

    def inputs(self, chats: Sequence[list[dict[str, Any]]]) -> Any:
        """Turn chats into one batch for the model, on its device.

        Args:
            chats: each ends with a message of the user.

        Returns:
            What the processor makes of them, padded.

        Raises:
            ValueError: if a picture cannot be read, or a chat breaks a rule.
        """
        return self.processor.apply_chat_template(
            list(chats),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        ).to(self.model.device)

    def hole_inputs(self, chat: list[dict[str, Any]], template: str) -> tuple[Any, list[int]]:
        """Turn a chat and an answer with holes into a batch of one.

        Args:
            chat: ends with a message of the user.
            template: the answer, with holes such as "[MASK:1]".

        Returns:
            What the processor makes of them, and the tokens of the answer with masks as holes.

        Raises:
            ValueError: if there is no hole, a picture cannot be read, or the chat breaks a rule.
        """
        inputs = self.processor.infilling_inputs([*chat, {"role": "assistant", "content": template}])
        return inputs.to(self.model.device), self.processor.encode_holes(template.strip())

    def fill_holes(self, holes: Sequence[int], tokens: Iterable[int]) -> list[int]:
        """Put tokens into holes.

        Args:
            holes: tokens with masks.
            tokens: one for each mask, in order.

        Returns:
            All tokens.
        """
        filled = iter(tokens)
        return [next(filled) if token == self.mask_token_id else token for token in holes]

    def recorder(self, holes: Sequence[int] | None = None, sample: int = 0) -> Recorder:
        """A recorder of this model's answers.

        Args:
            holes: the tokens of an answer with masks as holes.
            sample: row of the batch.

        Returns:
            The recorder.
        """
        return Recorder(self.tokenizer, self.mask_token_id, self.end_token_ids, sample, context_ids=holes)


def load(
    checkpoint: str | Path | None = None,
    device: str = "auto",
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    quantization: str | None = None,
    dtype: str | None = None,
) -> Assistant:
    """Load a checkpoint, and an adapter beside it.

    Args:
        checkpoint: folder or Hub id; by default the bundled small one, or what the adapter was trained on.
        device: "auto" takes a GPU if there is one, else any torch device.
        trust_remote_code: run code that the checkpoint brings; not needed for LLaDA-V checkpoints.
        adapter: folder or Hub id of a PEFT adapter.
        quantization: hold the language model in fewer bits, in one of the ways of `QUANTIZATIONS`.
        dtype: of the weights, such as "bfloat16"; by default theirs, and on a CPU float32.

    Returns:
        Model and processor.

    Raises:
        ImportError: if the library that quantises is not installed.
        OSError: if there is no such checkpoint.
        ValueError: if it is no LLaDA-V, the adapter does not fit it, or its weights are quantised already.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # Half precision is slow on most CPUs, and a small model loses nothing in float32.
    loading: dict[str, Any] = {"dtype": dtype or (torch.float32 if device == "cpu" else "auto")}
    if quantization is not None:
        computing = getattr(torch, dtype) if dtype else torch.float32 if device == "cpu" else torch.bfloat16
        loading = {"dtype": computing, "quantization_config": quantization_config(quantization, computing, device)}
        loading["device_map"] = {"": device}
    if adapter is not None:
        name = _adapter_name(adapter)
        options: dict[str, Any] = {"base": checkpoint, "trust_remote_code": trust_remote_code}
        model = load_with_adapter(adapter, name=name, **loading, **options)
        return Assistant(_placed(model, device), load_processor(adapter, **options), adapter)
    source = str(checkpoint or BUNDLED_CHECKPOINT)
    _check_config(AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code), source, quantization)
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=trust_remote_code, **loading)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    return Assistant(_placed(model, device).eval(), processor)


def _check_config(config: Any, source: str, quantization: str | None) -> None:
    """Refuse what cannot answer before its weights, which may be many, are looked for."""
    if config.model_type != "lladav":
        raise ValueError(f"{source} holds a {config.model_type!r} model; give a LLaDA-V checkpoint")
    if quantization is not None and getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"quantization={quantization!r}, but the weights of {source} are quantised already; leave it out"
        )


def _placed(model: Any, device: str) -> Any:
    """Quantised weights stay where they were loaded."""
    return model if is_quantized(model) else model.to(device)


def switch_adapter(assistant: Assistant, adapter: str | Path | None) -> None:
    """Answer with another adapter from now on, or without one. Those that were used before stay in memory.

    Args:
        assistant: from `load`.
        adapter: folder or Hub id of a PEFT adapter; None for the base model alone.

    Raises:
        OSError: if there is no such adapter.
        ValueError: if it does not fit the model.
    """
    held = getattr(assistant.model, "peft_config", {})
    if adapter is None:
        if held:
            assistant.model.base_model.disable_adapter_layers()
    else:
        name = _adapter_name(adapter)
        if name not in held:
            assistant.model = attach_adapter(assistant.model, adapter, name)
        assistant.model.base_model.enable_adapter_layers()
        assistant.model.set_adapter(name)
    assistant.adapter = adapter


def _adapter_name(adapter: str | Path) -> str:
    """What PEFT calls an adapter: its place, without the dots that names of modules must not have."""
    place = Path(adapter)
    return str(place.resolve() if place.is_dir() else place).replace(".", "_")
