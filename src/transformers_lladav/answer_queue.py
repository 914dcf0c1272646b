"""A queue in front of one model: requests of many callers, answered in batches by a single thread.

Requests that wait at the same time and ask for the same settings are denoised as one batch; each gets what it would
get alone. Nothing here waits for a caller: a slow or absent one delays nobody.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from .assistant import Assistant, switch_adapter
from .eval_tasks import append_text
from .presets_lladav import find_preset
from .streaming import Draft

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
        messages: gives a chat whose contents are lists of parts, when its turn has come; a `ValueError` that it
            raises ends this request.
        settings: arguments of `generate`.
        preset: settings by name, with the tag that goes after the question.
        seed: of sampling; a random one by default.
        watched: whether drafts are wanted.
        template: an answer with holes that are filled, and nothing else of it changed; such a request is answered
            alone.
        adapter: a PEFT adapter to answer with; by default the one that the assistant came with, if any.
    """

    messages: Callable[[], list[dict[str, Any]]]
    settings: dict[str, Any] = field(default_factory=dict)
    preset: str | None = None
    seed: int | None = None
    watched: bool = False
    template: str | None = None
    adapter: str | None = None

    @property
    def together(self) -> str:
        """Requests of which this is the same can be one batch."""
        alone = None if self.template is None else id(self)
        return repr((self.preset, sorted(self.settings.items()), self.adapter, alone))


@dataclass(frozen=True)
class Completion:
    """What was answered.

    Attributes:
        token_ids: of the answer, without its end; with a template, of all of it.
        prompt_tokens: positions of the prompt, pictures included.
        denoising_steps: that this answer took part in.
        tokens_per_forward: tokens, the end included, over forward passes.
        finish_reason: as in `LladaVGenerationOutput`.
    """

    token_ids: tuple[int, ...]
    prompt_tokens: int
    denoising_steps: int
    tokens_per_forward: float
    finish_reason: str


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class Ticket:
    """A request on its way.

    Attributes:
        request: what is asked.
        draft: the newest draft, if the request is watched.
        completion: the answer, once it is there.
        error: why there is none.
    """

    def __init__(self, request: Request, on_change: Callable[[], None]) -> None:
        self.request, self._on_change = request, on_change
        self.draft: Draft | None = None
        self.completion: Completion | None = None
        self.error: Exception | None = None
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether nothing more will happen."""
        return self.completion is not None or self.error is not None

    def cancel(self) -> None:
        """Nobody wants the answer any more. A batch of which that is true as a whole ends after the step that runs."""
        self.cancelled = True

    def tell(self, **news: Any) -> None:
        """Note what happened, and wake who waits for it; only the thread of the queue calls this."""
        for name, value in news.items():
            setattr(self, name, value)
        try:
            self._on_change()
        except Exception:  # whoever asked is gone; the others go on
            self.cancelled = True


class _Abandoned(Exception):
    """Raised inside `generate` when nobody waits for the batch any more."""


class AnswerQueue:
    """Answers requests in the order they came.

    Args:
        assistant: that answers.
        batch_size: how many are answered together at most.
        waiting: how many may wait at most.
    """

    def __init__(self, assistant: Assistant, batch_size: int = 8, waiting: int = 64) -> None:
        self.assistant, self.batch_size, self.limit = assistant, batch_size, waiting
        self._own_adapter = assistant.adapter
        self._waiting: deque[Ticket] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._live: list[Ticket] = []
        self._thread = threading.Thread(target=self._work, name="lladav-answers", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_change: Callable[[], None]) -> Ticket:
        """Put a request into the queue.

        Args:
            request: what is asked.
            on_change: called by another thread after every draft, and when the request is done. It must not wait.

        Returns:
            Its ticket.

        Raises:
            QueueFullError: if too many wait already.
            RuntimeError: if the queue was closed.
        """
        ticket = Ticket(request, on_change)
        with self._news:
            if self._closed:
                raise RuntimeError("the queue was closed; it takes no more requests")
            self._waiting = deque(held for held in self._waiting if not held.cancelled)
            if len(self._waiting) >= self.limit:
                raise QueueFullError(f"{self.limit} requests wait already; try again in a moment")
            self._waiting.append(ticket)
            self._news.notify()
        return ticket

    def close(self) -> None:
        """Take no more requests, let go of those that are there, and wait for the step that runs."""
        with self._news:
            self._closed = True
            for ticket in (*self._waiting, *self._live):
                ticket.cancel()
            self._news.notify()
        self._thread.join()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._answer(batch)

    def _next_batch(self) -> list[Ticket] | None:
        """The oldest request and others that go with it; None when the queue is closed."""
        with self._news:
            while True:
                self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)
                if self._waiting:
                    key = self._waiting[0].request.together
                    alike = [ticket for ticket in self._waiting if ticket.request.together == key][: self.batch_size]
                    self._waiting = deque(ticket for ticket in self._waiting if ticket not in alike)
                    self._live = alike
                    return alike
                self._live = []
                if self._closed:
                    return None
                self._news.wait()

    def _answer(self, batch: list[Ticket]) -> None:
        error = self._failure(batch)
        if error is None:
            return
        if len(batch) == 1:
            batch[0].tell(error=error)
            return
        # One of them breaks a rule, or together they take too much memory.
        for ticket in batch:
            if not ticket.cancelled:
                self._answer([ticket])

    def _failure(self, batch: list[Ticket]) -> Exception | None:
        """Answer requests; gives what went wrong, without its trace, which would keep the tensors of the batch."""
        try:
            self._generate(batch)
        except _Abandoned:
            return None
        except Exception as error:
            if len(batch) == 1 and not isinstance(error, ValueError | TypeError):
                logger.exception("A request failed")
            return error.with_traceback(None)
        return None

    def _generate(self, batch: list[Ticket]) -> None:
        """Answer requests with the same settings."""
        first, assistant = batch[0].request, self.assistant
        wanted = first.adapter or self._own_adapter
        if wanted != assistant.adapter:
            switch_adapter(assistant, wanted)
        inputs, holes = self._inputs([ticket.request for ticket in batch])
        recorders = [
            (ticket, assistant.recorder(holes, row)) for row, ticket in enumerate(batch) if ticket.request.watched
        ]

        def after_step(step: Any) -> None:
            if all(ticket.cancelled for ticket in batch):
                raise _Abandoned
            for ticket, recorder in recorders:
                if not ticket.cancelled:
                    recorder(step)
                    ticket.tell(draft=recorder.draft())

        output = assistant.model.generate(
            **inputs,
            tokenizer=assistant.tokenizer,
            preset=first.preset,
            generator=[_generator(ticket.request.seed, assistant.model.device) for ticket in batch],
            callback_on_step_end=after_step,
            return_dict_in_generate=True,
            **first.settings,
            **({} if holes is None else {"infill": True}),
        )
        prompts = inputs["attention_mask"].sum(dim=1).tolist()
        for row, ticket in enumerate(batch):
            if not ticket.cancelled:
                tokens = output.answers[row].tolist()
                if holes is not None:
                    tokens = assistant.fill_holes(holes, tokens)
                ticket.tell(completion=_completion(output, row, tokens, prompts[row]))

    def _inputs(self, requests: list[Request]) -> tuple[Any, list[int] | None]:
        """What the model gets, and for a template its tokens with masks as holes."""
        preset, template = requests[0].preset, requests[0].template
        tag = find_preset(preset).tag if preset is not None else None
        chats = [request.messages() for request in requests]
        if tag:
            chats = [append_text(chat, f" {tag}") for chat in chats]
        if template is None:
            return self.assistant.inputs(chats), None
        return self.assistant.hole_inputs(chats[0], template)


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


def _completion(output: Any, row: int, token_ids: list[int], prompt_tokens: int) -> Completion:
    return Completion(
        token_ids=tuple(token_ids),
        prompt_tokens=prompt_tokens,
        denoising_steps=int(output.denoising_steps[row]),
        tokens_per_forward=round(float(output.tokens_per_forward[row]), 3),
        finish_reason=output.finish_reasons[row],
    )
