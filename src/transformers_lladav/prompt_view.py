"""A chat as the model sees it, made without opening a picture: its tokens, and how many each placeholder becomes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .bare_prompts import Prompt, bare_chat, label_bare, template_options
from .chat_text_lladav import escape_chat, set_apart
from .diffusion_lladav import IGNORE_INDEX
from .image_processing_lladav import count_image_tokens
from .labels import PromptIds, label_tokens
from .media import Size, frame_count, media_parts
from .tiling_lladav import video_token_count


@dataclass(frozen=True)
class Cut:
    """What is lost when a sample is cut after so many tokens.

    Attributes:
        tokens: how many go.
        through_picture: whether a picture or video loses tokens, so that the sample cannot be used.
        answerless: whether no token of an answer is left.
        needed: the fewest tokens with which neither would be so.
    """

    tokens: int
    through_picture: bool
    answerless: bool
    needed: int


@dataclass(frozen=True)
class PromptView:
    """The tokens of a chat with one placeholder per picture and video.

    Attributes:
        input_ids: (tokens,).
        widths: (tokens,), 1, and at placeholders the tokens of the picture or video.
        structure: the ids that labels are told by.
        answers_only: whether nothing but the assistant's words is learned.
        bare_labels: (tokens,), what is learned if it is no chat.
    """

    input_ids: torch.Tensor
    widths: torch.Tensor
    structure: PromptIds
    answers_only: bool = False
    bare_labels: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens with pictures and videos expanded."""
        return int(self.widths.sum())

    @property
    def labels(self) -> torch.Tensor:
        """(tokens,), -100 where nothing is learned; see `labels.label_tokens` and `bare_prompts.label_bare`."""
        return self._labels(self.answers_only)

    def _labels(self, answers_only: bool) -> torch.Tensor:
        if self.bare_labels is not None:
            return self.bare_labels
        return label_tokens(self.input_ids, self.structure, answers_only)

    def cut(self, max_length: int) -> Cut | None:
        """Say what cutting the sample at the end would lose.

        Args:
            max_length: tokens that are left.

        Returns:
            What is lost, or None if the sample fits.
        """
        if self.length <= max_length:
            return None
        ends = self.widths.cumsum(0)
        pictures, answers = ends[self.widths > 1], ends[self._labels(answers_only=True) != IGNORE_INDEX]
        last_picture = int(pictures.max()) if len(pictures) else 0
        first_answer = int(answers.min()) if len(answers) else self.length
        return Cut(
            tokens=self.length - max_length,
            through_picture=last_picture > max_length,
            answerless=first_answer > max_length,
            needed=max(last_picture, first_answer),
        )


class PromptViewer:
    """Tokenises chats and counts the tokens of their pictures from the sizes alone.

    Args:
        processor: a `LladaVProcessor`.
        image_separator: what the template writes after a picture; a line feed, as official training has it.
        prompt: "chat", or one without a template; see `bare_prompts`.
        answers_only: as for `Collator`.

    Raises:
        ValueError: if the tokenizer lacks a control token.
    """

    def __init__(
        self, processor: Any, image_separator: str = "\n", prompt: Prompt = "chat", answers_only: bool = False
    ) -> None:
        self.processor, self.image_separator, self.prompt = processor, image_separator, prompt
        self.answers_only = answers_only
        self._structure = PromptIds.from_processor(processor)
        self._control = processor.control_tokens()

    def view(self, messages: Sequence[Mapping[str, Any]], sizes: Sequence[Size]) -> PromptView:
        """See a chat as the model does.

        Args:
            messages: of an example.
            sizes: (height, width) of its pictures, as from `media.check_media`.

        Returns:
            Its tokens.

        Raises:
            RecordError: if a video file cannot be opened.
            ValueError: if a prompt without a template cannot be made of it.
            ImportError: if there is a video file and PyAV is not installed.
        """
        bare = self.prompt != "chat"
        if bare:
            messages = bare_chat(self.prompt, messages)
        chat = set_apart(escape_chat([_without_media(message) for message in messages], self._control))
        prompt = self.processor.apply_chat_template(
            chat, sanitize_control_tokens=False, **template_options(self.prompt, self.image_separator)
        )
        # A chat brings all of its special tokens; other prompts get what the tokenizer adds to any text.
        tokenizer = self.processor.tokenizer
        ids = torch.tensor(tokenizer(prompt, add_special_tokens=bare).input_ids)
        labels = label_bare(ids, messages, tokenizer, self._control, self._structure.placeholders) if bare else None
        frames = [_frames(video) for video in media_parts(messages, "video")]
        widths = torch.ones_like(ids)
        for token_id, tokens in (
            (self.processor.image_token_id, _picture_widths(sizes, self.processor)),
            (self.processor.video_token_id, _video_widths(frames, self.processor)),
        ):
            widths[ids == token_id] = torch.tensor(tokens, dtype=ids.dtype)
        return PromptView(ids, widths, self._structure, self.answers_only, labels)


def _without_media(message: Mapping[str, Any]) -> dict[str, Any]:
    content = [part if part["type"] == "text" else {"type": part["type"]} for part in message["content"]]
    return {**message, "content": content}


def _picture_widths(sizes: Sequence[Size], processor: Any) -> list[int]:
    """Only the one picture of a sample is tiled, unless the image processor says otherwise."""
    tiling = processor.image_processor.tiling
    if sizes and (tiling == "tiles" or (tiling == "auto" and len(sizes) == 1)):
        return processor._get_num_multimodal_tokens(list(sizes)).num_image_tokens
    geometry = processor.image_processor.geometry()
    return [count_image_tokens(size, 1, geometry) for size in sizes]


def _video_widths(frames: Sequence[int], processor: Any) -> list[int]:
    geometry, limit = processor.image_processor.geometry(), processor.image_processor.max_video_frames
    return [
        video_token_count(min(count, limit), geometry.patches_per_side, geometry.newline_position) for count in frames
    ]


def _frames(video: Any) -> int:
    return frame_count(video) if isinstance(video, str) else len(video)
