"""How long samples are once their pictures are expanded, and which are too long to be used, before any training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .bare_prompts import Prompt
from .data import first_of
from .media import check_media
from .prompt_view import Cut, PromptViewer
from .record_files import DataError, Progress, RecordError
from .samples import Selection, field_of


@dataclass
class LengthCheck:
    """How long samples are, and what a cut does to them.

    Attributes:
        examples: those that can be used.
        lengths: tokens of each of these with pictures and videos expanded, as training sees them: after the cut.
        cut: how many of these are longer than the limit.
        lost: tokens that they lose together.
        left_out: what is wrong with the others.
    """

    examples: Sequence[Any]
    lengths: list[int] = field(default_factory=list)
    cut: int = 0
    lost: int = 0
    left_out: list[RecordError] = field(default_factory=list)


def check_lengths(
    examples: Sequence[Any],
    processor: Any,
    max_length: int | None = None,
    *,
    prompt: Prompt = "chat",
    skip_bad: bool = False,
    image_separator: str = "\n",
    on_progress: Progress | None = None,
) -> LengthCheck:
    r"""Count the tokens of samples, and find those that `Collator` could not use; of pictures only headers are read.

    Args:
        examples: with `.messages` and `.source`, or dictionaries with "messages".
        processor: a `LladaVProcessor`.
        max_length: tokens of a sample that are left; None cuts nothing.
        prompt: as for `Collator`.
        skip_bad: leave out samples that cannot be used: a picture would be cut, nothing of the answers be left, a
            picture cannot be read, or the sample is none for such a prompt.
        image_separator: as for `Collator`.
        on_progress: is told how many samples were looked at and how many there are.

    Returns:
        What was found.

    Raises:
        DataError: naming samples that cannot be used, unless `skip_bad`; or if no sample is left.
        ImportError: if there is a video file and PyAV is not installed.
    """
    viewer = PromptViewer(processor, image_separator, prompt)
    report = on_progress or (lambda done, total: None)
    check, kept = LengthCheck(examples), []
    for index, example in enumerate(examples):
        source = field_of(example, "source") or f"example {index}"
        try:
            length, cut = _measure([_in_parts(m) for m in field_of(example, "messages")], viewer, max_length)
        except ValueError as error:
            check.left_out.append(RecordError.of(error, source))
        else:
            kept.append(index)
            lost = 0 if cut is None else cut.tokens
            check.lengths.append(length - lost)
            check.cut, check.lost = check.cut + (lost > 0), check.lost + lost
        report(index + 1, len(examples))
    if check.left_out and not skip_bad:
        raise DataError(
            f"{len(check.left_out)} of {len(examples)} samples cannot be used: {first_of(check.left_out)}; put them "
            "right, or pass skip_bad=True (--skip-bad) to leave them out"
        )
    if not kept:
        raise DataError(f"no sample is left: {len(examples)} were given; {first_of(check.left_out)}")
    if check.left_out:
        check.examples = Selection(examples, kept)
    return check


def _measure(messages: list[dict[str, Any]], viewer: PromptViewer, max_length: int | None) -> tuple[int, Cut | None]:
    """Tokens of a sample, and what the cut would lose; an error if it cannot be cut."""
    limit = viewer.processor.image_processor.max_image_pixels
    view = viewer.view(messages, check_media(messages, limit))
    cut = None if max_length is None else view.cut(max_length)
    if cut is not None and (cut.through_picture or cut.answerless):
        loss = "go through a picture or video" if cut.through_picture else "leave nothing of the answers"
        raise RecordError(
            f"the sample has {view.length} tokens, more than max_length={max_length}, and cutting the end would "
            f"{loss}; shorten it, or pass max_length={cut.needed} or more (--set max_length={cut.needed})"
        )
    return view.length, cut


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
