"""Conversations of the web page: what visitors ask, checked, answered draft by draft. Nothing here knows gradio.

What visitors send is looked at before it is used: pictures by their headers, texts by their length, settings by the
rules of `generate`. Models and adapters are those that the owner named.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .answer_queue import AnswerQueue, QueueFullError, Request, Ticket
from .assistant import Assistant
from .eval_asking import Asking, resolve_generation
from .streaming import Draft
from .untrusted_pictures import decode_untrusted, open_untrusted
from .web_view import Turn, conversation, figures, note, problem

logger = logging.getLogger(__name__)

NO_ADAPTER = "none"


@dataclass(frozen=True)
class Site:
    """What the page offers.

    Attributes:
        models: name to a function that loads it; the first is chosen at the start, the others load when they are.
        adapters: name to folder or Hub id.
        max_tokens: longest answer.
        picture_bytes: of an uploaded file.
        pixels: of a picture.
        characters: of a question, or an answer with holes.
        waiting: requests that may wait.
        timeout: seconds from a question to its answer.
        batch_size: questions that are answered together.
        examples: whether to offer pictures that the bundled checkpoint knows something about.
    """

    models: Mapping[str, Callable[[], Assistant]]
    adapters: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int = 256
    picture_bytes: int = 20 * 2**20
    pixels: int = 40_000_000
    characters: int = 4000
    waiting: int = 32
    timeout: float = 120.0
    batch_size: int = 8
    examples: bool = True


class Queues:
    """A queue per model; a model is loaded when it is first asked for.

    Args:
        site: what is offered.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._queues: dict[str, AnswerQueue] = {}
        self._locks = {name: threading.Lock() for name in site.models}

    def is_loaded(self, name: str) -> bool:
        """Whether a model can answer at once."""
        return name in self._queues

    def get(self, name: str) -> AnswerQueue:
        """The queue of a model.

        Args:
            name: of the model.

        Returns:
            Its queue.

        Raises:
            ValueError: if there is no such model.
            Exception: whatever its loading raises.
        """
        if name not in self._locks:
            raise ValueError(f"the model {name!r} is not offered; choose one of {', '.join(self._locks)}")
        with self._locks[name]:
            if name not in self._queues:
                assistant = self.site.models[name]()
                self._queues[name] = AnswerQueue(assistant, self.site.batch_size, self.site.waiting)
            return self._queues[name]

    def close(self) -> None:
        """Let go of all requests."""
        for queue in list(self._queues.values()):  # a model that is being loaded may add one
            queue.close()


@dataclass(frozen=True)
class Choice:
    """What a visitor set.

    Attributes:
        model: name of a model.
        adapter: name of an adapter, or `NO_ADAPTER`.
        preset: one of the presets.
        length: of the answer canvas in tokens.
        block: tokens that are denoised together.
        steps: over all blocks; 0 for one per token.
        threshold: write every token that is at least so probable; 0 leaves it to the preset.
        pace: seconds that every step is shown; 0 shows them as fast as they come, and leaves some out.
    """

    model: str
    adapter: str = NO_ADAPTER
    preset: str = "exact"
    length: int = 48
    block: int = 8
    steps: int = 0
    threshold: float = 0.0
    pace: float = 0.0

    def settings(self) -> dict[str, Any]:
        """Arguments of `generate`."""
        settings: dict[str, Any] = {"max_new_tokens": self.length, "block_length": self.block}
        if self.steps:
            settings["max_denoising_steps"] = self.steps
        if self.threshold:
            settings["threshold"] = self.threshold
        return settings


Page = tuple[str, str, list[Turn]]  # conversation and status as HTML, and what was said


class Talk:
    """Answers visitors.

    Args:
        site: what is offered.
        queues: the models.
    """

    def __init__(self, site: Site, queues: Queues) -> None:
        self.site, self.queues = site, queues

    def ask(
        self, turns: Sequence[Turn], picture: str | None, question: str, template: str, choice: Choice
    ) -> Iterator[Page]:
        """Answer a question, draft by draft; where that fails, the conversation stays as it was.

        Args:
            turns: what was said before.
            picture: the file that is shown; it goes with this question if the one before was about another.
            question: the words.
            template: an answer with holes, or nothing.
            choice: settings.

        Yields:
            What the page shows.
        """
        said = list(turns)
        try:
            request, shown = self._request(said, picture, question, template, choice)
            if not self.queues.is_loaded(choice.model):
                yield conversation(said, question), note(f"Loading {choice.model} ..."), said
            queue = self.queues.get(choice.model)
            resolve_generation(queue.assistant.model, Asking(request.settings, request.preset))
            yield from self._watch(_Watcher(queue, request, question, self.site.timeout), said, shown, choice.pace)
        except (ValueError, TypeError, OSError, ImportError, QueueFullError) as error:
            yield conversation(said), problem(str(error)), said
        except Exception:  # memory that runs out, for one; what it says is for the owner
            logger.exception("A question could not be answered")
            told = problem("the model failed; the log of the program that serves this page says why")
            yield conversation(said), told, said

    def _request(
        self, said: Sequence[Turn], picture: str | None, question: str, template: str, choice: Choice
    ) -> tuple[Request, tuple[str, ...]]:
        """What is asked, checked, and the pictures that come with this question."""
        for name, text in (("question", question), ("answer with holes", template)):
            if len(text) > self.site.characters:
                raise ValueError(
                    f"the {name} has {len(text):,} characters, and {self.site.characters:,} are allowed; shorten it"
                )
        if not question.strip():
            raise ValueError("the question is empty; ask something, such as 'What is in the picture?'")
        if choice.length > self.site.max_tokens:
            raise ValueError(f"an answer of {choice.length} tokens is longer than the {self.site.max_tokens} allowed")
        if choice.adapter != NO_ADAPTER and choice.adapter not in self.site.adapters:
            raise ValueError(f"the adapter {choice.adapter!r} is not offered")
        before = [file for turn in said for file in turn.pictures]
        shown = () if picture is None or picture in before[-1:] else (picture,)
        for file in shown:
            self._check_picture(file)

        def messages() -> list[dict[str, Any]]:
            return [*(part for turn in said for part in self._messages(turn)), self._message(question, shown)]

        filled = template.strip() or None
        adapter = self.site.adapters.get(choice.adapter)
        settings = choice.settings()
        if filled:  # which says how long it is, and how many holes there are
            del settings["max_new_tokens"]
        return Request(messages, settings, choice.preset, watched=True, template=filled, adapter=adapter), shown

    def _check_picture(self, file: str) -> None:
        path = _uploaded(file)
        size = path.stat().st_size
        if size > self.site.picture_bytes:
            raise ValueError(f"the picture has {size:,} bytes, and {self.site.picture_bytes:,} are allowed; shrink it")
        with open_untrusted(path, "the picture", self.site.pixels):
            pass

    def _messages(self, turn: Turn) -> list[dict[str, Any]]:
        reply = {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}
        return [self._message(turn.question, turn.pictures), reply]

    def _message(self, text: str, files: Sequence[str]) -> dict[str, Any]:
        pictures = [decode_untrusted(_uploaded(file), "the picture", self.site.pixels) for file in files]
        shown = [{"type": "image", "image": picture} for picture in pictures]
        return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}

    def _watch(self, watcher: "_Watcher", said: list[Turn], shown: tuple[str, ...], pace: float) -> Iterator[Page]:
        """Hand over drafts until the answer is there; who stops listening takes the request along."""
        request, question = watcher.request, watcher.question
        try:
            yield conversation(said, question), note("Waiting ..."), said
            for draft in watcher.drafts(every=pace > 0):
                yield conversation(said, question, draft.pieces), note("Denoising ..."), said
                time.sleep(pace)
            turn, told = watcher.finish(shown)
            # An answer with holes is shown and not kept: the next question is not about it.
            kept = [*said, turn] if request.template is None else said
            yield conversation([*said, turn]), told, kept
        finally:
            watcher.ticket.cancel()


def _uploaded(file: str) -> Path:
    """The file of a picture; the page deletes old ones, also such that a conversation is about."""
    path = Path(file)
    if not path.is_file():
        raise ValueError("a picture is not here any more; clear the conversation and show it again")
    return path


class _Watcher:
    """Waits for the drafts of a request.

    Args:
        queue: that answers it.
        request: what is asked.
        question: its words, as they are shown.
        timeout: seconds from now to the answer.
    """

    def __init__(self, queue: AnswerQueue, request: Request, question: str, timeout: float) -> None:
        self.assistant, self.request, self.question, self.timeout = queue.assistant, request, question, timeout
        self._drafts: deque[Draft] = deque()
        self._news = threading.Event()
        self._begun = self._ended = time.monotonic()
        self._ticket: Ticket | None = None
        self.ticket = self._ticket = queue.submit(request, self._changed)

    def _changed(self) -> None:
        """Called by the thread of the queue."""
        ticket = self._ticket
        if ticket is not None and ticket.draft is not None and not ticket.done:
            self._drafts.append(ticket.draft)
        self._ended = time.monotonic()
        self._news.set()

    def drafts(self, every: bool) -> Iterator[Draft]:
        """The drafts as they come; without `every` only the newest one that was not seen."""
        while not self.ticket.done or (every and self._drafts):
            if not self._drafts:
                self._wait()
                continue
            draft = self._drafts.popleft()
            if every or not self._drafts:
                yield draft

    def _wait(self) -> None:
        left = self._begun + self.timeout - time.monotonic()
        if not self._news.wait(max(left, 0)):
            raise TimeoutError(f"no answer within {self.timeout:g} s; ask for fewer tokens, or try again")
        self._news.clear()

    def finish(self, shown: tuple[str, ...]) -> tuple[Turn, str]:
        """The answer, and what it took; raises what went wrong."""
        if self.ticket.error is not None:
            raise self.ticket.error
        completion, draft = self.ticket.completion, self.ticket.draft
        assert completion is not None
        tokens = list(completion.token_ids)
        text = self.assistant.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        pieces = () if draft is None else draft.pieces[: len(tokens)]
        told = figures(
            len(tokens), completion.denoising_steps, completion.tokens_per_forward, self._ended - self._begun,
            full=completion.finish_reason == "length",
        )  # fmt: skip
        return Turn(self.question, shown, text, pieces), told
