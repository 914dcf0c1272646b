"""From a picture and a question to an answer: load a checkpoint, run the loop, watch it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from . import BUNDLED_CHECKPOINT
from .adapters import attach_adapter, load_processor, load_with_adapter
from .constraints_lladav import AnswerChoices
from .denoising_lladav import DenoisingStep
from .image_processing_lladav import LladaVImageProcessor, open_picture
from .presets_lladav import find_preset
from .quantization import is_quantized, quantization_config
from .recording import Recorder, Recording
from .streaming import Draft, DraftDecoder, TokenState

Picture = Image.Image | str | Path


@dataclass
class Assistant:
    """A model with its processor.

    Attributes:
        model: a LLaDA-V in evaluation mode.
        processor: its processor.
    """

    model: Any
    processor: Any

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


@dataclass(frozen=True)
class Answer:
    """What `ask` returns.

    Attributes:
        text: the answer.
        tokens: how many tokens it has.
        denoising_steps: forward passes it took.
        tokens_per_forward: tokens, the end included, over forward passes.
        stopped: whether the model ended the answer itself.
        finish_reason: "stop", "stop_string", "length" (the canvas was full), "stopping_criteria" or "filled".
    """

    text: str
    tokens: int
    denoising_steps: int
    tokens_per_forward: float
    stopped: bool
    finish_reason: str


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
        return Assistant(_placed(model, device), load_processor(adapter, **options))
    source = str(checkpoint or BUNDLED_CHECKPOINT)
    if quantization is not None:
        _check_plain(AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code), source, quantization)
    model = AutoModelForImageTextToText.from_pretrained(source, trust_remote_code=trust_remote_code, **loading)
    if model.config.model_type != "lladav":
        raise ValueError(f"{source} holds a {model.config.model_type!r} model; give a LLaDA-V checkpoint")
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
    return Assistant(_placed(model, device).eval(), processor)


def _check_plain(config: Any, source: str, quantization: str) -> None:
    if getattr(config, "quantization_config", None) is not None:
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
        return
    name = _adapter_name(adapter)
    if name not in held:
        assistant.model = attach_adapter(assistant.model, adapter, name)
    assistant.model.base_model.enable_adapter_layers()
    assistant.model.set_adapter(name)


def _adapter_name(adapter: str | Path) -> str:
    """What PEFT calls an adapter: its place, without the dots that names of modules must not have."""
    place = Path(adapter)
    return str(place.resolve() if place.is_dir() else place).replace(".", "_")


def read_picture(source: Picture) -> Image.Image:
    """Open a picture before anything slow happens.

    Args:
        source: an image, or the path or URL of one.

    Returns:
        The picture.

    Raises:
        ValueError: if it cannot be read, with the reason.
    """
    return open_picture(source, "the picture", LladaVImageProcessor.max_image_pixels)


def user_message(pictures: Sequence[Picture], text: str) -> dict[str, Any]:
    """A message with pictures before the text, as the processor takes it.

    Args:
        pictures: any number.
        text: the words.

    Returns:
        The message.

    Raises:
        ValueError: if the text is empty.
    """
    if not text.strip():
        raise ValueError("the question is empty; ask something, such as 'What is in the picture?'")
    images = [{"type": "image", "image": str(item) if isinstance(item, Path) else item} for item in pictures]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def ask(
    assistant: Assistant,
    picture: Picture,
    question: str,
    on_draft: Callable[[Draft], None] | None = None,
    recorder: Recorder | None = None,
    preset: str | None = None,
    choices: Sequence[str] | None = None,
    **settings: Any,
) -> Answer:
    """Ask one question about one picture.

    Args:
        assistant: from `load`.
        picture: an image or the path of one.
        question: the question.
        on_draft: called after every step with the answer so far.
        recorder: takes every step, for a film of the answer.
        preset: settings by name; its tag, such as "/no_think", is put after the question.
        choices: the only answers allowed.
        **settings: passed to `generate`.

    Returns:
        The answer with the figures of its generation.

    Raises:
        ValueError: if the picture cannot be read, the question is empty, or a setting breaks a rule.
    """
    tag = find_preset(preset).tag if preset is not None else None
    messages = [user_message([picture], f"{question} {tag}" if tag and question.strip() else question)]
    if choices is not None:
        settings = {**settings, **choice_settings(assistant, choices)}
    return answer(assistant, messages, on_draft, recorder, preset=preset, **settings)


def choice_settings(assistant: Assistant, choices: Sequence[str]) -> dict[str, Any]:
    """Arguments of `generate` that allow nothing but certain answers, on a canvas that just holds them.

    Args:
        assistant: from `load`.
        choices: the answers.

    Returns:
        `allowed_tokens_fn`, `max_new_tokens` and `block_length`.

    Raises:
        ValueError: without choices, or if one is empty.
    """
    encoded = [assistant.tokenizer(text, add_special_tokens=False).input_ids for text in choices]
    allowed = AnswerChoices(encoded, assistant.end_token_ids[0], assistant.mask_token_id)
    return {"allowed_tokens_fn": allowed, "max_new_tokens": allowed.length, "block_length": allowed.length}


def answer(
    assistant: Assistant,
    messages: list[dict[str, Any]],
    on_draft: Callable[[Draft], None] | None = None,
    recorder: Recorder | None = None,
    **settings: Any,
) -> Answer:
    """Answer the last message of a chat.

    Args:
        assistant: from `load`.
        messages: the chat so far, with its pictures.
        on_draft: called after every step with the answer so far.
        recorder: takes every step, for a film of the answer.
        **settings: passed to `generate`.

    Returns:
        The answer with the figures of its generation.

    Raises:
        ValueError: if a picture cannot be read or a setting breaks a rule.
    """
    inputs = _inputs(assistant, messages)
    output = _generate(assistant, inputs, on_draft, recorder, None, settings)
    text = assistant.tokenizer.decode(output.answers[0], skip_special_tokens=True).strip()
    return _figures(text, output)


def fill(
    assistant: Assistant,
    picture: Picture,
    question: str,
    template: str,
    on_draft: Callable[[Draft], None] | None = None,
    recorder: Recorder | None = None,
    **settings: Any,
) -> Answer:
    """Complete an answer that has holes.

    Args:
        assistant: from `load`.
        picture: an image or the path of one.
        question: the question.
        template: the answer with holes, such as "There is a [MASK:1] star."; nothing else of it changes.
        on_draft: called after every step with the answer so far.
        recorder: takes every step; make it with `context_ids=processor.encode_holes(template)`.
        **settings: passed to `generate`.

    Returns:
        The completed answer with the figures of its generation.

    Raises:
        ValueError: if the picture cannot be read, there is no hole, or a setting breaks a rule.
    """
    messages = [user_message([picture], question), {"role": "assistant", "content": template}]
    inputs = assistant.processor.infilling_inputs(messages).to(assistant.model.device)
    context = assistant.processor.encode_holes(template.strip())
    output = _generate(assistant, inputs, on_draft, recorder, context, {**settings, "infill": True})
    filled = iter(output.answers[0].tolist())
    tokens = [next(filled) if token == assistant.mask_token_id else token for token in context]
    return _figures(assistant.tokenizer.decode(tokens).strip(), output)


@dataclass(frozen=True)
class RatedAnswer:
    """An answer with its likelihood.

    Attributes:
        text: the answer.
        log_likelihood: estimated, of the answer and its end, in nats.
        standard_error: of the estimate.
        per_token: the log-likelihood over the number of tokens.
        share: of the likelihood of all answers together.
        exact: whether every mask was counted, not only some.
    """

    text: str
    log_likelihood: float
    standard_error: float
    per_token: float
    share: float
    exact: bool


def score(
    assistant: Assistant, picture: Picture, question: str, answers: Sequence[str], **options: Any
) -> list[RatedAnswer]:
    """Rate answers to a question by their likelihood.

    Args:
        assistant: from `load`.
        picture: an image or the path of one.
        question: the question.
        answers: what to rate.
        **options: passed to the model's `score`.

    Returns:
        The answers, likeliest first.

    Raises:
        ValueError: if the picture cannot be read, there are no answers, or one is empty.
    """
    inputs = _inputs(assistant, [user_message([picture], question)])
    rated = assistant.model.score(**inputs, answers=list(answers), tokenizer=assistant.tokenizer, **options)
    shares = rated.log_likelihoods.softmax(dim=0)
    figures = (rated.log_likelihoods, rated.standard_errors, rated.log_likelihoods_per_token, shares, rated.exact)
    rows = zip(answers, *(values.tolist() for values in figures), strict=True)
    return sorted((RatedAnswer(*row) for row in rows), key=lambda item: -item.log_likelihood)


def record(assistant: Assistant, template: str | None = None) -> Recorder:
    """A recorder for `ask`, or for `fill` with its template.

    Args:
        assistant: from `load`.
        template: the answer with holes.

    Returns:
        The recorder, to be passed on.
    """
    context = None if template is None else assistant.processor.encode_holes(template.strip())
    return Recorder(assistant.tokenizer, assistant.mask_token_id, assistant.end_token_ids, context_ids=context)


def film(recorder: Recorder, picture: Picture, question: str, answered: Answer) -> Recording:
    """What was recorded, with its picture and figures, ready to be saved.

    Args:
        recorder: from `record`, after the answer.
        picture: that of the question.
        question: the question.
        answered: the answer.

    Returns:
        The recording.
    """
    figures = {"forward passes": answered.denoising_steps, "tokens per forward": answered.tokens_per_forward}
    length = None if answered.finish_reason == "filled" else answered.tokens
    return recorder.finish(question, read_picture(picture), figures, length=length)


def _inputs(assistant: Assistant, messages: list[dict[str, Any]]) -> Any:
    return assistant.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(assistant.model.device)


def _generate(
    assistant: Assistant,
    inputs: Any,
    on_draft: Callable[[Draft], None] | None,
    recorder: Recorder | None,
    context: list[int] | None,
    settings: dict[str, Any],
) -> Any:
    decoder = DraftDecoder(assistant.tokenizer, assistant.mask_token_id, assistant.end_token_ids)

    def show(step: DenoisingStep) -> None:
        if recorder is not None:
            recorder(step)
        if on_draft is not None:
            on_draft(_draft(decoder, step, context))

    return assistant.model.generate(
        **inputs,
        tokenizer=assistant.tokenizer,
        callback_on_step_end=show if on_draft or recorder else None,
        return_dict_in_generate=True,
        **settings,
    )


def _draft(decoder: DraftDecoder, step: DenoisingStep, context: list[int] | None) -> Draft:
    """The answer after a step; with holes, in the text around them."""
    tokens = step.tokens[0].tolist()
    fresh = {step.start + place for place in step.committed[0].nonzero()[:, 0].tolist()}
    if context is not None:
        holes = [place for place, token in enumerate(context) if token == decoder.mask_token_id]
        fresh = {holes[place] for place in fresh}
        filled = list(context)
        for place, token in zip(holes, tokens, strict=True):
            filled[place] = token
        tokens = filled
    pieces = decoder.decode(tokens, fresh)
    return Draft(0, pieces, done=all(piece.state != TokenState.MASKED for piece in pieces))


def _figures(text: str, output: Any) -> Answer:
    return Answer(
        text=text,
        tokens=len(output.answers[0]),
        denoising_steps=int(output.denoising_steps[0]),
        tokens_per_forward=round(float(output.tokens_per_forward[0]), 3),
        stopped=bool(output.stopped[0]),
        finish_reason=output.finish_reasons[0],
    )
