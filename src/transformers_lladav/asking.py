"""From a picture and a question to an answer: load a checkpoint, run the loop, watch it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from . import BUNDLED_CHECKPOINT
from .denoising_lladav import DenoisingStep


@dataclass
class Assistant:
    """A model with its processor.

    Attributes:
        model: a LLaDA-V in evaluation mode.
        processor: its processor.
    """

    model: Any
    processor: Any


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    Attributes:
        text: the answer.
        tokens: how many tokens it has.
        denoising_steps: forward passes it took.
        tokens_per_forward: tokens, the end included, over forward passes.
        stopped: whether the model ended the answer itself; otherwise the canvas was full.
    """

    text: str
    tokens: int
    denoising_steps: int
    tokens_per_forward: float
    stopped: bool


def load(checkpoint: str | Path | None = None, device: str = "auto", trust_remote_code: bool = False) -> Assistant:
    """Load a checkpoint.

    Args:
        checkpoint: folder or Hub id; the bundled small one by default.
        device: "auto" takes a GPU if there is one, else any torch device.
        trust_remote_code: run code that the checkpoint brings; not needed for LLaDA-V checkpoints.

    Returns:
        Model and processor, the model in the dtype of its weights.

    Raises:
        OSError: if there is no such checkpoint.
        ValueError: if it is no LLaDA-V.
    """
    source = str(checkpoint or BUNDLED_CHECKPOINT)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    # Half precision is slow on most CPUs, and a small model loses nothing in float32.
    dtype = torch.float32 if device == "cpu" else "auto"
    model = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, trust_remote_code=trust_remote_code)
    if model.config.model_type != "lladav":
        raise ValueError(f"{source} holds a {model.config.model_type!r} model; give a LLaDA-V checkpoint")
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    return Assistant(model.to(device).eval(), processor)


def ask(
    assistant: Assistant,
    picture: Image.Image | str | Path,
    question: str,
    on_draft: Callable[[str], None] | None = None,
    **settings: Any,
) -> Answer:
    """Ask one question about one picture.

    Args:
        assistant: from `load`.
        picture: an image or the path of one.
        question: the question.
        on_draft: called after every step with the answer so far, masks shown as blocks.
        **settings: passed to `generate`.

    Returns:
        The answer with the figures of its generation.

    Raises:
        ValueError: if the picture cannot be read, the question is empty, or a setting breaks a rule.
    """
    if not question.strip():
        raise ValueError("the question is empty; ask something, such as 'What is in the picture?'")
    model, processor = assistant.model, assistant.processor
    picture = str(picture) if isinstance(picture, Path) else picture
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)

    def show(step: DenoisingStep) -> None:
        if on_draft is not None:
            on_draft(draft_text(step.tokens[0].tolist(), processor.tokenizer, model.config))

    output = model.generate(
        **inputs, tokenizer=processor.tokenizer, callback_on_step_end=show, return_dict_in_generate=True, **settings
    )
    tokens = output.answers[0]
    return Answer(
        text=processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        tokens=len(tokens),
        denoising_steps=int(output.denoising_steps[0]),
        tokens_per_forward=round(float(output.tokens_per_forward[0]), 3),
        stopped=bool(output.stopped[0]),
    )


def draft_text(token_ids: list[int], tokenizer: Any, config: Any, mask: str = "░░") -> str:
    """An unfinished answer as text.

    Args:
        token_ids: the canvas.
        tokenizer: decodes what is written.
        config: the model's configuration, for the ids of mask and end.
        mask: what stands for a token that is not known yet.

    Returns:
        The text up to an end token; runs of written tokens are decoded together.
    """
    pieces: list[str] = []
    run: list[int] = []
    for token_id in [*token_ids, config.text_config.eos_token_id]:
        at_end = token_id == config.text_config.eos_token_id
        if at_end or token_id == config.mask_token_id:
            pieces.append(tokenizer.decode(run) if run else "")
            run = []
            if at_end:
                break
            pieces.append(f" {mask}")
        else:
            run.append(token_id)
    return "".join(pieces).strip()
