"""From a picture and a question to an answer: run the loop, watch it, rate answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .assistant import Assistant, load, switch_adapter
from .constraints_lladav import AnswerChoices
from .denoising_lladav import DenoisingStep
from .generation_configuration_lladav import resolve_aliases
from .image_processing_lladav import LladaVImageProcessor, open_picture
from .presets_lladav import find_preset
from .recording import Recorder, Recording
from .streaming import Draft

__all__ = [
    "Answer", "Assistant", "Picture", "RatedAnswer", "answer", "ask", "choice_settings", "fill", "film", "load",
    "read_picture", "record", "score", "switch_adapter", "tagged", "user_message",
]  # fmt: skip

Picture = Image.Image | str | Path


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
        choices: the only answers allowed; the longest decides how long the canvas is.
        **settings: passed to `generate`.

    Returns:
        The answer with the figures of its generation.

    Raises:
        ValueError: if the picture cannot be read, the question is empty, a setting breaks a rule, or lengths are given
            beside choices.
    """
    messages = [user_message([picture], tagged(question, preset))]
    if choices is not None:
        settings = _with_choices(settings, choice_settings(assistant, choices))
    return answer(assistant, messages, on_draft, recorder, preset=preset, **settings)


def tagged(question: str, preset: str | None) -> str:
    """A question as it is asked with a preset.

    Args:
        question: its words.
        preset: settings by name.

    Returns:
        The question with the tag of the preset behind it, if that has one.

    Raises:
        ValueError: for an unknown preset.
    """
    tag = find_preset(preset).tag if preset is not None else None
    return f"{question} {tag}" if tag and question.strip() else question


def _with_choices(given: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """Settings on the canvas of choices; a preset's number of steps, which is made for another canvas, is left out."""
    own = resolve_aliases(given)
    if twice := [name for name in chosen if own.get(name) is not None]:
        raise ValueError(
            f"{twice[0]}={own[twice[0]]!r:.80} has no meaning with choices, which decide it; leave one of the two out"
        )
    return {"max_denoising_steps": None, **own, **chosen}


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
    inputs = assistant.inputs([messages])
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
    inputs, holes = assistant.hole_inputs([user_message([picture], question)], template)
    output = _generate(assistant, inputs, on_draft, recorder, holes, {**settings, "infill": True})
    tokens = assistant.fill_holes(holes, output.answers[0].tolist())
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
    inputs = assistant.inputs([[user_message([picture], question)]])
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
    return assistant.recorder(context)


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


def _generate(
    assistant: Assistant,
    inputs: Any,
    on_draft: Callable[[Draft], None] | None,
    recorder: Recorder | None,
    context: list[int] | None,
    settings: dict[str, Any],
) -> Any:
    watched = on_draft is not None or recorder is not None
    recorder = recorder or assistant.recorder(context)

    def show(step: DenoisingStep) -> None:
        recorder(step)
        if on_draft is not None:
            on_draft(recorder.draft())

    return assistant.model.generate(
        **inputs,
        tokenizer=assistant.tokenizer,
        callback_on_step_end=show if watched else None,
        return_dict_in_generate=True,
        **settings,
    )


def _figures(text: str, output: Any) -> Answer:
    return Answer(
        text=text,
        tokens=len(output.answers[0]),
        denoising_steps=int(output.denoising_steps[0]),
        tokens_per_forward=round(float(output.tokens_per_forward[0]), 3),
        stopped=bool(output.stopped[0]),
        finish_reason=output.finish_reasons[0],
    )
