"""Answers to rows of any data: in batches of prompts of similar length, and as a class that ray.data can map.

import ray
from transformers_lladav.predicting import LladaVPredictor

rows = ray.data.read_images("pictures/")
answered = rows.map_batches(LladaVPredictor, concurrency=8, num_gpus=1, batch_size=256)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import asking
from .eval_asking import Asking, Reply, resolve_generation, seed_of, write
from .image_processing_lladav import open_picture
from .media import MAX_IMAGE_PIXELS, MediaFolder, check_media
from .prompt_view import PromptViewer
from .record_files import RecordError
from .records import DEFAULT_QUESTION

Chat = list[dict[str, Any]]


def answer_in_batches(
    assistant: asking.Assistant, chats: Sequence[Chat], lengths: Sequence[int], how: Asking, seeds: Sequence[int]
) -> list[Reply]:
    """Answer chats, prompts of similar length together and the longest first, so that memory runs out early or never.

    Args:
        assistant: that answers.
        chats: each ends with a message of the user.
        lengths: tokens of each.
        how: the model is asked; says how many are answered together.
        seeds: one per chat, for settings that sample.

    Returns:
        The replies, in the order of the chats.
    """
    order = sorted(range(len(chats)), key=lambda number: -lengths[number])
    replies: dict[int, Reply] = {}
    for first in range(0, len(order), how.batch_size):
        batch = order[first : first + how.batch_size]
        said, own_seeds = [chats[number] for number in batch], [seeds[number] for number in batch]
        found = write(assistant.model, assistant.processor, said, how, own_seeds)
        replies |= zip(batch, found, strict=True)
    return [replies[number] for number in range(len(chats))]


class LladaVPredictor:
    """Answers batches of rows, given as columns; for `ray.data.Dataset.map_batches`, or any other code.

    Args:
        model: folder or Hub id; by default the bundled checkpoint, or what the adapter was trained on.
        adapter: folder or Hub id of a LoRA adapter.
        image: column of pictures: arrays (height, width, 3), bytes of files, PIL images, dictionaries with "bytes" or
            "path", or paths below `image_folder`; None for no picture. A column that is missing means none anywhere.
        question: column of questions; without it, and where it is None or NaN, `ask` is asked.
        prediction: column that the answers get.
        ask: the question of rows without one.
        preset: settings by name.
        batch_size: rows that are answered together.
        seed: of sampling; every row has a random stream of its own.
        image_folder: where paths start, and may not lead out of; without it paths are refused.
        device: "auto", or any torch device.
        trust_remote_code: run code that the checkpoint brings.
        quantization: hold the language model in fewer bits; see `quantization.QUANTIZATIONS`.
        **generation: arguments of `generate`.

    Raises:
        OSError: if there is no such model.
        TypeError: for an argument that `generate` does not take.
        ValueError: if a setting breaks a rule.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        adapter: str | Path | None = None,
        *,
        image: str = "image",
        question: str = "question",
        prediction: str = "prediction",
        ask: str = DEFAULT_QUESTION,
        preset: str | None = None,
        batch_size: int = 32,
        seed: int = 0,
        image_folder: str | Path | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
        quantization: str | None = None,
        **generation: Any,
    ) -> None:
        self.image, self.question, self.prediction, self.ask = image, question, prediction, ask
        self.how = Asking(generation, preset, seed, batch_size=batch_size)
        self.folder = None if image_folder is None else MediaFolder(Path(image_folder).absolute())
        self.assistant = asking.load(model, device, trust_remote_code, adapter, quantization)
        self.viewer = PromptViewer(self.assistant.processor)
        resolve_generation(self.assistant.model, self.how)

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
        """Answer rows.

        Args:
            batch: columns of one length.

        Returns:
            The columns, and the answers as one more.

        Raises:
            ValueError: if the column of answers is there already, there are neither pictures nor questions, or a row
                cannot be used; it names the row.
        """
        if self.prediction in batch:
            raise ValueError(f"the rows have a column {self.prediction!r} already; pass prediction=another name")
        if self.image not in batch and self.question not in batch:
            raise ValueError(
                f"the rows have neither a column {self.image!r} nor {self.question!r}, but {', '.join(batch)}; pass "
                "image= or question="
            )
        count = len(batch[self.image if self.image in batch else self.question])
        chats, lengths, seeds = [], [], []
        for number in range(count):
            chat, seed = self._chat(batch, number)
            try:
                lengths.append(self.viewer.view(chat, check_media(chat)).length)
            except RecordError as error:
                raise ValueError(f"row {number}: {error.reason}") from error
            chats.append(chat)
            seeds.append(seed)
        replies = answer_in_batches(self.assistant, chats, lengths, self.how, seeds)
        return {**batch, self.prediction: np.array([reply.text for reply in replies], dtype=object)}

    def _chat(self, batch: Mapping[str, Sequence[Any]], number: int) -> tuple[Chat, int]:
        """The chat of a row, and the seed of its random stream, which its content decides."""
        asked = batch[self.question][number] if self.question in batch else None
        question = self.ask if _is_missing(asked) else str(asked)
        given = batch[self.image][number] if self.image in batch else None
        try:
            pictures = [] if given is None else [self._picture(given)]
            chat = [asking.user_message(pictures, question)]
        except (RecordError, ValueError) as error:
            raise ValueError(f"row {number}: {getattr(error, 'reason', error)}") from error
        return chat, seed_of(f"{self.how.seed}/{question}", *(picture.tobytes() for picture in pictures))

    def _picture(self, given: Any) -> Image.Image:
        if isinstance(given, bytes):
            given = {"bytes": given}
        if isinstance(given, Mapping) and not given.get("bytes"):
            given = given.get("path")
        if isinstance(given, str | Path) and self.folder is None:
            raise ValueError(f"the picture {str(given)!r} is a path; pass image_folder= to say where paths may lead")
        if isinstance(given, np.ndarray):
            return open_picture(given, "the picture", MAX_IMAGE_PIXELS)
        return open_picture((self.folder or MediaFolder(Path())).picture(given), "the picture", MAX_IMAGE_PIXELS)


def _is_missing(value: Any) -> bool:
    """Whether a column has nothing here: None, or the NaN that tables of pandas have in its place."""
    return value is None or (isinstance(value, float) and value != value)
