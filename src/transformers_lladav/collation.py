"""Examples to batches for the model's own forward, with labels and with the noise already drawn.

The forward pass is then deterministic: it gets noised `input_ids`, `labels` that are -100 where nothing is hidden, and
`loss_weights` (arXiv:2505.16933, section 3; arXiv:2502.09992, algorithm 2).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from PIL import Image

from .bare_prompts import PROMPTS, Prompt, bare_chat, bare_turns, label_bare, template_options
from .diffusion_lladav import IGNORE_INDEX, NoisedBatch, hide_tokens
from .labels import PromptIds, conversation_ids, label_tokens, message_spans, text_start
from .media import load_videos
from .noise import (
    Noise,
    complementary_views,
    fixed_noise,
    hide_blocks,
    hide_sparsely,
    numbered_generator,
    runs,
    training_noise,
)
from .packing import NO_SAMPLE, pack_lengths, packed_mask, packed_positions
from .recipes import CanvasTurns, check_chat_share, check_noise
from .rows import Row, extended, length_unexpanded, worth_scale
from .samples import field_of

# What a token that only fills a canvas up counts, next to one of an answer.
END_WEIGHT = 0.1
TEXT_INPUTS = ("input_ids", "attention_mask")
MEDIA_INPUTS = ("pixel_values", "pixel_values_videos")
NO_NUMBER = -1


@dataclass
class Collator:
    """Turns a list of examples into one batch, padded on the right, with the noise drawn.

    The noise of a `Sample` depends on seed, epoch and index only: it is the same whatever the batch, the number of
    workers and their order, and a run can be taken up at any batch. Other examples get theirs from torch's global
    generator. Placeholders of pictures and videos are never hidden.

    Args:
        processor: a `LladaVProcessor`.
        seed: of the run.
        max_length: tokens of a sample with its pictures; longer ones are cut at the end.
        too_long: what happens where the cut would go through a picture or leave nothing of the answers: "error", or
            "drop" to warn and leave the sample out.
        answers_only: learn nothing outside the assistant's messages; see `label_tokens`.
        train_on_padding: learn padding as well, as the official training does: rows are filled up as if every
            picture was a single token. What is then missing to the longest row is padding that is not learned.
        answer_canvas: fill a sample's last answer up with the token that ends it, in a completion the line feed, to a
            multiple of so many tokens, as `generate` writes it, so that the number of masks does not tell how long it
            is (LLaDA, arXiv:2502.09992, section 2.3, learns ends in the same way). Each counts `END_WEIGHT` of an
            answer's token. One of several lengths is drawn for every answer, of those that hold it, for a model that
            is to answer on any of them.
        canvas_turns: fill up the last answer, or all of them: in a conversation of several short ones that are
            learned at once, each then looks as it does when it is written.
        block_noise: hide answers as `generate` meets them with this block length, each by draws of its own, and not
            any of their tokens at one level; see `noise.hide_blocks`.
        holes: share of the answers longer than a block that get holes with it, as infilling meets them.
        sparse_noise: of every so many tokens of an answer hide one, or all but one; see `noise.hide_sparsely`.
        conversation_mask: let no turn see a later one; in a completion every question begins one.
        complementary: two rows per sample, which hide every learnable token once; see `complementary_views`.
        fixed_noise: for evaluation: the same noise in every epoch, with levels spread evenly over the samples.
        packing: put several samples into a row of at most `max_length` tokens, none in view of another. The loss is
            that of the same samples one by one. The mask is a boolean one that attn_implementation="sdpa" takes.
        image_separator: what stands between a picture and the text after it; a line feed as in the official training.
            Only chats have one.
        prompt: "chat", or "plain" for a picture directly followed by the answer and a line feed, as the paper's first
            stage has it: no template, the question's words dropped, everything after the picture learned. Or
            "completion": questions and answers line by line, the answers learned.
        chat_share: of completions, share of the samples that are chats all the same: what is learned in the short
            form then carries over to the long one as it goes. `answer_canvas`, `canvas_turns` and `answers_only` are
            for these.
        fill_in_picture: give a batch without pictures and videos one more row with a blank picture, of which nothing
            is learned; the loss stays the mean over the samples. In sharded training all processes have to run the
            vision tower together.
        sample_numbers: add `sample_numbers`, (samples,), the number of each sample of the batch, -1 where it has
            none; the model does not take them.
    """

    processor: Any
    seed: int = 0
    max_length: int | None = None
    too_long: Literal["error", "drop"] = "error"
    answers_only: bool = False
    train_on_padding: bool = False
    answer_canvas: int | tuple[int, ...] | None = None
    canvas_turns: CanvasTurns = "last"
    block_noise: int | None = None
    holes: float = 0.0
    sparse_noise: int | None = None
    conversation_mask: bool = False
    complementary: bool = False
    fixed_noise: bool = False
    packing: bool = False
    image_separator: str = "\n"
    prompt: Prompt = "chat"
    chat_share: float = 0.0
    fill_in_picture: bool = False
    sample_numbers: bool = False

    def __post_init__(self) -> None:
        choices = {"too_long": ("error", "drop"), "canvas_turns": get_args(CanvasTurns), "prompt": PROMPTS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                words = " or ".join(f'"{word}"' for word in known)
                raise ValueError(f"{name}={getattr(self, name)!r}; choose {words}")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length={self.max_length}; a sample has at least one token: pass more, or None")
        if self.packing and self.max_length is None:
            raise ValueError("packing=True needs max_length, the tokens that a row holds; pass max_length=4096")
        if self.packing and self.train_on_padding:
            raise ValueError("packing=True leaves no padding for train_on_padding=True; choose one of them")
        if self.answer_canvas is not None:
            self._check_canvas()
        check_noise(self.block_noise, self.sparse_noise, self.complementary, self.holes)
        check_chat_share(self.prompt, self.chat_share)
        if self.prompt != "chat" and self.answers_only and not self.chat_share:
            raise ValueError(
                f'answers_only=True has no meaning with prompt="{self.prompt}", which has no messages; leave it out'
            )
        self.ids = PromptIds.from_processor(self.processor)

    @property
    def _canvases(self) -> tuple[int, ...]:
        """The lengths that an answer's canvas may have."""
        canvas = self.answer_canvas
        return () if canvas is None else canvas if isinstance(canvas, tuple) else (canvas,)

    def _check_canvas(self) -> None:
        canvas = self.answer_canvas
        if min(self._canvases, default=0) < 1:
            raise ValueError(f"answer_canvas={canvas}; a canvas holds at least one token: pass more, or None")
        if self.train_on_padding:
            raise ValueError(
                f"answer_canvas={canvas} and train_on_padding=True both learn what comes after: choose one"
            )
        if self.prompt == "plain":
            raise ValueError(
                f'answer_canvas={canvas} has no meaning with prompt="plain", which is never asked; leave it out'
            )

    def __call__(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: `Sample`s, or others with `.messages` and perhaps `.source`, or dictionaries with these keys.

        Returns:
            What the model's forward takes: `input_ids`, `attention_mask`, `labels` and `loss_weights`, pictures and
            videos if there are some, `conversation_ids` or `position_ids` if they are needed; and `sample_numbers` if
            they were asked for.

        Raises:
            ValueError: if a sample is too long and cannot be cut, or cannot be processed; names it.
        """
        prepared = [self.prepare(example, number) for number, example in enumerate(examples)]
        rows = [row for row in prepared if row is not None] or [self._nothing()]
        if self.train_on_padding:
            rows = self.filled_up(rows)
        batch = self.assemble([view for row in rows for view in self.add_noise(row, self.noise_of(row))])
        if self.sample_numbers:
            numbers = [NO_NUMBER if row.number is None else row.number[1] for row in rows]
            batch["sample_numbers"] = torch.tensor(numbers)
        return batch

    def prepare(self, example: Any, number: int = 0) -> Row | None:
        """Make a clean row of an example: ids, labels, turns, pictures.

        Args:
            example: see `__call__`.
            number: its place in the batch, for messages.

        Returns:
            The row; None if it is dropped.

        Raises:
            ValueError: if it is too long and cannot be cut, or cannot be processed.
        """
        if self.chat_share:
            return self._form_of(example).prepare(example, number)
        name = field_of(example, "source") or f"sample {number} of the batch"
        messages = field_of(example, "messages")
        if not messages:
            raise ValueError(f'{name} has no messages; give an object with .messages, or a dictionary with "messages"')
        try:
            chat = messages if self.prompt == "chat" else bare_chat(self.prompt, messages)
            inputs = self._model_inputs(chat)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        input_ids = inputs["input_ids"][0]
        labels = self._labels(input_ids, chat)
        if self.max_length is not None and len(input_ids) > self.max_length:
            if problem := self._problem_of_cutting(input_ids, labels, self.max_length):
                if self.too_long == "drop":
                    warnings.warn(f"{name} is left out: {problem}", stacklevel=2)
                    return None
                raise ValueError(f'{name} {problem}; raise max_length, shorten it, or pass too_long="drop"')
            input_ids, labels = input_ids[: self.max_length], labels[: self.max_length]
        index, epoch = field_of(example, "index"), field_of(example, "epoch")
        row = Row(
            input_ids=input_ids,
            labels=labels,
            loss_weights=torch.zeros(len(input_ids)),
            turns=conversation_ids(input_ids, self.ids) if self.prompt == "chat" else bare_turns(labels),
            media={key: value for key, value in inputs.items() if key not in TEXT_INPUTS},
            name=name,
            number=None if index is None else (epoch or 0, index),
            worth=torch.ones(len(input_ids)),
        )
        return self._on_canvas(row) if self._canvases else row

    def _form_of(self, example: Any) -> "Collator":
        """Draw whether an example is a chat or a completion."""
        index, epoch = field_of(example, "index"), field_of(example, "epoch")
        generator = self._generator(None if index is None else (epoch or 0, index), "form")
        is_chat = torch.rand((), generator=generator) < self.chat_share
        return self._chats if is_chat else self._completions

    @cached_property
    def _chats(self) -> "Collator":
        return replace(self, prompt="chat", chat_share=0.0)

    @cached_property
    def _completions(self) -> "Collator":
        return replace(self, chat_share=0.0, answers_only=False, answer_canvas=None, canvas_turns="last")

    def _on_canvas(self, row: Row) -> Row:
        """Fill the last answer up with its end, or all of them, as far as there is room."""
        answers = self._answers(row.input_ids, row.labels)
        if not answers or answers[-1][1] < len(row) or (self.prompt == "chat" and row.input_ids[-1] != self.ids.end):
            return row  # somebody else has the last word, or it was cut
        generator = self._generator(row.number, "canvas")
        for start, end in reversed(answers if self.canvas_turns == "all" else answers[-1:]):
            # Were an answer put on several short canvases, their number would tell how long it is.
            holding = [canvas for canvas in self._canvases if canvas >= end - start] or [max(self._canvases)]
            canvas = holding[int(torch.randint(len(holding), (1,), generator=generator))]
            count = (start - end) % canvas
            if self.max_length is not None:
                count = min(count, self.max_length - len(row))
            row = extended(row, row.input_ids[end - 1].repeat(count), end, worth=END_WEIGHT)
        return row

    def _answers(self, input_ids: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int]]:
        """Where the answers of a clean prompt start and end."""
        if self.prompt != "chat":
            return runs(labels != IGNORE_INDEX)
        messages = [m for m in message_spans(input_ids, self.ids) if m.role == self.ids.assistant]
        return [(text_start(input_ids, message, self.ids), message.end) for message in messages]

    def _labels(self, input_ids: torch.Tensor, chat: list[dict[str, Any]]) -> torch.Tensor:
        """What is to be learned of a prompt, and the chat that it was made of."""
        if self.prompt == "chat":
            return label_tokens(input_ids, self.ids, self.answers_only)
        control = self.processor.control_tokens()
        return label_bare(input_ids, chat, self.processor.tokenizer, control, self.ids.placeholders)

    def _model_inputs(self, messages: list[dict[str, Any]]) -> Any:
        """What the processor makes of a chat."""
        return self.processor.apply_chat_template(
            _with_frames(messages, self.processor.image_processor.max_video_frames),
            tokenize=True,
            return_dict=True,
            processor_kwargs={"return_tensors": "pt"},
            **template_options(self.prompt, self.image_separator),
        )

    def _problem_of_cutting(self, input_ids: torch.Tensor, labels: torch.Tensor, length: int) -> str | None:
        """Why a sample cannot be cut to a length, if it cannot."""
        start = f"has {len(input_ids)} tokens, more than max_length={length}, and"
        pictures = torch.isin(input_ids, torch.tensor(self.ids.placeholders))
        kept, needed = int(pictures[:length].sum()), int(pictures.sum())
        if kept < needed:
            return f"{start} the end cannot be cut: only {kept} of its {needed} picture tokens would be left"
        answers = self._answers(input_ids, labels)
        if answers and answers[0][0] >= length:
            return f"{start} the end cannot be cut: its first answer begins at token {answers[0][0]}"
        return None

    def _nothing(self) -> Row:
        """What is left when every sample was dropped: one token, of which nothing is learned."""
        ids = torch.tensor([self.ids.start])
        ignored, turns = torch.full_like(ids, IGNORE_INDEX), torch.zeros_like(ids)
        return Row(ids, ignored, torch.zeros(1), turns, {}, "nothing", (0, NO_NUMBER), torch.ones(1))

    def filled_up(self, rows: list[Row]) -> list[Row]:
        """Give the clean rows of a batch the padding that is learned; see `train_on_padding`.

        Args:
            rows: all of the batch.

        Returns:
            Rows of the same length, if every picture was a single token.
        """
        lengths = [length_unexpanded(row, self.ids.placeholders) for row in rows]
        filled = []
        for row, length in zip(rows, lengths, strict=True):
            filled.append(extended(row, torch.full((max(lengths) - length,), self.ids.padding)))
        return filled

    def noise_of(self, row: Row) -> Noise:
        """Draw the noise of a row.

        Args:
            row: a clean row.

        Returns:
            The draws; of a row with a number, always the same.

        Raises:
            ValueError: if `fixed_noise` is asked for and the row has no number.
        """
        if self.fixed_noise:
            if row.number is None:
                raise ValueError(
                    f"{row.name} has no number, which fixed_noise=True draws its noise from; wrap the data: "
                    "DataLoader(Numbered(examples), ...)"
                )
            return fixed_noise(len(row), self.seed, row.number[1])
        return training_noise(len(row), None if row.number is None else numbered_generator(self.seed, *row.number))

    def _generator(self, number: tuple[int, int] | None, what: str) -> torch.Generator | None:
        """Where draws for a sample come from: epoch and index, without the epoch for an evaluation."""
        if number is None:
            return None
        epoch, index = number
        return numbered_generator(self.seed, what, 0 if self.fixed_noise else epoch, index)

    def add_noise(self, row: Row, noise: Noise) -> list[Row]:
        """Hide tokens of a row by given draws.

        Args:
            row: a clean row.
            noise: its draws; blocks have draws of their own.

        Returns:
            One noised row, or two complementary ones.
        """
        given, tokens = (row.input_ids[None], row.labels[None]), (self.ids.mask, self.ids.placeholders)
        scale = worth_scale(row)
        views: tuple[NoisedBatch, ...]
        drawn = self._generator(row.number, "blocks") if self.block_noise or self.sparse_noise else None
        if self.block_noise:
            noised = hide_blocks(*given, row.worth, self.block_noise, self.ids.mask, drawn, self.holes)
            views, scale = (noised,), torch.ones(len(row))
        elif self.sparse_noise:
            noised = hide_sparsely(*given, row.worth, self.sparse_noise, self.ids.mask, drawn)
            views, scale = (noised,), torch.ones(len(row))
        elif self.complementary:
            views = complementary_views(*given, noise, *tokens)
        else:
            views = (hide_tokens(*given, *noise, *tokens),)
        return [
            replace(row, input_ids=view.input_ids[0], labels=view.labels[0], loss_weights=view.loss_weights[0] * scale)
            for view in views
        ]

    def assemble(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Put noised rows together.

        Args:
            rows: all of the batch.

        Returns:
            What the model's forward takes.
        """
        lines = [[row] for row in rows]
        if self.packing:
            assert self.max_length is not None
            lines = [[rows[i] for i in chosen] for chosen in pack_lengths([len(row) for row in rows], self.max_length)]
        if self.fill_in_picture and not any(name in row.media for row in rows for name in MEDIA_INPUTS):
            lines.append([self._blank])
        batch = self._stacked(lines)
        samples, turns = batch.pop("samples"), batch.pop("turns")
        # The forward divides by lines, and the loss is a mean over samples.
        batch["loss_weights"] *= len(lines) / len(rows)
        if self.packing:
            batch["position_ids"] = packed_positions(samples)
            batch["attention_mask"] = packed_mask(samples, turns if self.conversation_mask else None)
            return batch
        batch["attention_mask"] = (samples != NO_SAMPLE).long()
        return {**batch, "conversation_ids": turns} if self.conversation_mask else batch

    @cached_property
    def _blank(self) -> Row:
        """A picture of one tile and nothing else, of which nothing is learned."""
        side = self.processor.image_processor.geometry().tile_size
        inputs = self.processor(
            text=self.processor.image_token,
            images=[[Image.new("RGB", (side, side))]],
            tiling="square",
            add_special_tokens=False,
            return_tensors="pt",
        )
        ids = inputs["input_ids"][0]
        media = {key: value for key, value in inputs.items() if key not in TEXT_INPUTS}
        ignored, turns = torch.full_like(ids, IGNORE_INDEX), torch.zeros_like(ids)
        return Row(ids, ignored, torch.zeros(len(ids)), turns, media, "a blank picture", None, torch.ones(len(ids)))

    def _stacked(self, packed: list[list[Row]]) -> dict[str, torch.Tensor]:
        """Rows of samples one after the other as tensors, filled up on the right; pictures in the same order."""
        shape = (len(packed), max(sum(map(len, rows)) for rows in packed))
        batch = {
            "input_ids": torch.full(shape, self.ids.padding),
            "labels": torch.full(shape, IGNORE_INDEX),
            "loss_weights": torch.zeros(shape),
            "turns": torch.zeros(shape, dtype=torch.long),
            "samples": torch.full(shape, NO_SAMPLE),
        }
        media: dict[str, list[torch.Tensor]] = {}
        for line, rows in enumerate(packed):
            start = 0
            for number, row in enumerate(rows):
                end = start + len(row)
                for name in ("input_ids", "labels", "loss_weights", "turns"):
                    batch[name][line, start:end] = getattr(row, name)
                batch["samples"][line, start:end] = number
                start = end
                for name, tensor in row.media.items():
                    media.setdefault(name, []).append(tensor)
        return batch | {name: torch.cat(tensors) for name, tensors in media.items()}


def _with_frames(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The messages with the frames of video files in the place of their paths."""
    return [load_videos([m], count)[0] if isinstance(m.get("content"), list) else m for m in messages]
