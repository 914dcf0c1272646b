"""Answers while they form: drafts of text pieces from token ids, shown on a terminal, handed over, or iterated.

A draft is what `generate` has after a step. It goes to a streamer as ids; here it becomes text, cut by token, each
piece with its state: just written, written earlier, or still a mask.
"""

import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, TextIO

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from transformers.generation.streamers import BaseStreamer

MASK_TOKEN, END_OF_TURN_TOKEN = "<|mdm_mask|>", "<|eot_id|>"
MASK_SIGN = "░░"
INCOMPLETE = "\ufffd"  # what decoders put where bytes make no character (yet)


class TokenState(StrEnum):
    """What has become of a slot of the canvas."""

    COMMITTED = "committed"
    FRESH = "fresh"
    MASKED = "masked"


STYLES = {TokenState.COMMITTED: "", TokenState.FRESH: "bold green", TokenState.MASKED: "dim"}
# An answer must not move the cursor, colour the screen or turn the direction of the text around it.
NOT_ON_A_TERMINAL = dict.fromkeys({*range(32), *range(127, 160), *range(8234, 8239), *range(8294, 8298)} - {9, 10})


@dataclass(frozen=True)
class Piece:
    """One token of a draft.

    Attributes:
        text: its part of the text, the leading space included; empty for a special token, and for all but the last
            of the tokens that make one character.
        state: fresh, committed or masked.
        confidence: of the token when it was committed, where known.
    """

    text: str
    state: TokenState
    confidence: float | None = None


@dataclass(frozen=True)
class Draft:
    """One sample's answer so far.

    Attributes:
        sample: row of the batch.
        pieces: one per token, up to the end.
        done: whether the answer is known to be complete; the last draft always is.
    """

    sample: int
    pieces: tuple[Piece, ...]
    done: bool

    @property
    def text(self) -> str:
        """The answer so far as plain text, each mask as its sign."""
        return "".join(piece.text for piece in self.pieces)


class DraftDecoder:
    """Turns token ids into pieces, for byte-level tokenizers such as LLaDA's.

    Args:
        tokenizer: a tokenizer, or a processor that has one.
        mask_token_id: the mask; by default what the tokenizer has as "<|mdm_mask|>".
        end_token_ids: tokens that end an answer; by default the tokenizer's end of text and "<|eot_id|>".
        mask_sign: what stands for a mask.

    Raises:
        ValueError: if no mask is given and the tokenizer has none.
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_token_id: int | None = None,
        end_token_ids: Iterable[int] | None = None,
        mask_sign: str = MASK_SIGN,
    ) -> None:
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if mask_token_id is None:
            mask_token_id = self._known(MASK_TOKEN)
        if mask_token_id is None:
            raise ValueError(f"the tokenizer has no {MASK_TOKEN}; pass mask_token_id=model.config.mask_token_id")
        if end_token_ids is None:
            usual = (self.tokenizer.eos_token_id, self._known(END_OF_TURN_TOKEN))
            end_token_ids = [token_id for token_id in usual if token_id is not None]
        self.mask_token_id = mask_token_id
        self.end_token_ids = frozenset(end_token_ids)
        self.mask_sign = mask_sign
        self._decoded = lru_cache(maxsize=2**16)(self._decode)  # every step decodes the whole answer

    def _decode(self, *token_ids: int) -> str:
        return str(
            self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )

    def _known(self, token: str) -> int | None:
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        return None if token_id == self.tokenizer.unk_token_id else token_id

    def decode(
        self,
        token_ids: Sequence[int],
        fresh: Collection[int] = (),
        confidence: Sequence[float | None] | None = None,
    ) -> tuple[Piece, ...]:
        """Cut an unfinished answer into pieces.

        Args:
            token_ids: the canvas, or as much of it as there is.
            fresh: which slots were written last.
            confidence: one value per slot, handed on to the pieces.

        Returns:
            One piece per token before the first end token. Masks stand apart by a space.
        """
        token_ids = token_ids[: self.end(token_ids)]
        pieces: list[Piece] = []
        for slot, text in enumerate(self.texts(token_ids)):
            if token_ids[slot] == self.mask_token_id:
                apart = pieces and not pieces[-1].text[-1:].isspace()
                pieces.append(Piece(f" {text}" if apart else text, TokenState.MASKED))
            else:
                state = TokenState.FRESH if slot in fresh else TokenState.COMMITTED
                pieces.append(Piece(text, state, confidence[slot] if confidence is not None else None))
        return tuple(pieces)

    def end(self, token_ids: Sequence[int]) -> int:
        """Find the first end token: its slot, or the number of tokens if there is none."""
        return next((slot for slot, token in enumerate(token_ids) if token in self.end_token_ids), len(token_ids))

    def texts(self, token_ids: Sequence[int]) -> list[str]:
        """Cut the text of written tokens and masks by token.

        Tokens between two masks are decoded together; a character that several make belongs to the last of them.
        """
        texts: list[str] = []
        start, cut = 0, 0  # first token of the character that is being put together; how much of its text is used
        for slot, token_id in enumerate(token_ids):
            if token_id == self.mask_token_id:
                texts.append(self.mask_sign)
                start, cut = slot + 1, 0
                continue
            last = slot + 1 == len(token_ids) or token_ids[slot + 1] == self.mask_token_id
            decoded = self._decoded(*token_ids[start : slot + 1])
            settled = decoded if last else decoded.rstrip(INCOMPLETE)
            texts.append(settled[cut:])
            start, cut = (slot + 1, 0) if settled == decoded else (start, len(settled))
        return texts


class _Sample:
    """The tokens of one row of the batch: finished blocks, then the live one."""

    def __init__(self, decoder: DraftDecoder, prompt: tuple[Piece, ...]) -> None:
        self.decoder = decoder
        self.prompt = prompt
        self.token_ids: list[int] = []
        self.block_start = 0
        self.fresh: set[int] = set()
        self.done = False

    def write(self, block: list[int]) -> None:
        """Take the live block as it is now."""
        self.fresh = set()
        if self.done:
            return
        mask = self.decoder.mask_token_id
        before = [*self.token_ids[self.block_start :], *[mask] * len(block)]
        changed = [slot for slot, token_id in enumerate(block) if token_id not in (mask, before[slot])]
        self.fresh = {self.block_start + slot for slot in changed}
        self.token_ids[self.block_start :] = block
        end = self.decoder.end(self.token_ids)
        self.done = end < len(self.token_ids) and mask not in self.token_ids[:end]

    def settle(self) -> None:
        """The live block is finished. Masks that are left in it will never be written: the answer ends before them."""
        written = [token_id for token_id in self.token_ids if token_id != self.decoder.mask_token_id]
        self.done = self.done or len(written) < len(self.token_ids)
        self.token_ids, self.block_start, self.fresh = written, len(written), set()

    def draft(self, index: int) -> Draft:
        pieces = self.decoder.decode(self.token_ids, self.fresh)
        return Draft(index, self.prompt + pieces, self.done)


class LladaVStreamer(BaseStreamer):
    """Shows or hands over the drafts of `generate(..., streamer=...)`, for batches of any size.

    Without `on_draft`, a terminal shows the drafts in place and keeps the answers; elsewhere only the answers are
    printed, a line each. The streamer can be used again after `end()`, and after `reset()` if `generate` failed.

    Args:
        tokenizer: a tokenizer, or a processor that has one.
        mask_token_id: the mask; by default what the tokenizer has as "<|mdm_mask|>".
        end_token_ids: tokens that end an answer; by default the tokenizer's end of text and "<|eot_id|>". Answers
            of batches that end at a stop string include it: it is known to `generate` only.
        skip_prompt: leave the prompt out.
        on_draft: called with one `Draft` per sample after each step, and with the answers at the end.
        file: where to print; standard output by default.
        mask_sign: what stands for a mask.
    """

    def __init__(
        self,
        tokenizer: Any,
        mask_token_id: int | None = None,
        end_token_ids: Iterable[int] | None = None,
        skip_prompt: bool = True,
        on_draft: Callable[[list[Draft]], None] | None = None,
        file: TextIO | None = None,
        mask_sign: str = MASK_SIGN,
    ) -> None:
        self.decoder = DraftDecoder(tokenizer, mask_token_id, end_token_ids, mask_sign)
        self.skip_prompt = skip_prompt
        self.on_draft = on_draft
        self.file = file
        self._samples: list[_Sample] = []
        self._live: Live | None = None
        self._stop_live: Callable[[], Any] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then each finished block.

        Args:
            value: (tokens,) or (batch, tokens) ids.
        """
        rows = _rows(value)
        if not self._samples:
            self._samples = [_Sample(self.decoder, () if self.skip_prompt else self._prompt(row)) for row in rows]
            return
        self._write(rows)
        if any(sample.fresh for sample in self._samples):  # no draft has shown them
            self._show(self._drafts())
        for sample in self._samples:
            sample.settle()

    def put_draft(self, value: torch.Tensor, **ignored: Any) -> None:
        """Take the live block after a step.

        Args:
            value: (tokens,) or (batch, tokens) ids.
            **ignored: what other models pass along.
        """
        self._write(_rows(value))
        self._show(self._drafts())

    def end(self) -> None:
        """Show the answers and forget the run."""
        for sample in self._samples:
            sample.settle()
            sample.done = True
        drafts = self._drafts()
        self.reset()
        if self.on_draft is not None:
            self.on_draft(drafts)
        else:
            self._print(drafts)

    def reset(self) -> None:
        """Forget a run that did not come to its end."""
        self._samples = []
        if self._stop_live is not None:
            self._stop_live()
        self._live = self._stop_live = None

    def _prompt(self, row: list[int]) -> tuple[Piece, ...]:
        return (Piece(self.decoder.tokenizer.decode(row, skip_special_tokens=True), TokenState.COMMITTED),)

    def _write(self, rows: list[list[int]]) -> None:
        for sample, row in zip(self._samples, rows, strict=True):
            sample.write(row)

    def _drafts(self) -> list[Draft]:
        return [sample.draft(index) for index, sample in enumerate(self._samples)]

    def _show(self, drafts: list[Draft]) -> None:
        if self.on_draft is not None:
            self.on_draft(drafts)
            return
        if self._live is None:
            console = Console(file=self.file)
            if not console.is_terminal:
                return
            self._live = Live(console=console, transient=True, auto_refresh=False)
            self._live.start()
            # Gives the cursor back even if `generate` fails and nobody calls `reset`.
            self._stop_live = weakref.finalize(self, self._live.stop)
        self._live.update(_on_terminal(drafts), refresh=True)

    def _print(self, drafts: list[Draft]) -> None:
        console = Console(file=self.file)
        if console.is_terminal:
            console.print(_on_terminal(drafts))
            return
        for draft in drafts:
            number = f"[{draft.sample}] " if len(drafts) > 1 else ""
            print(f"{number}{draft.text}", file=self.file or sys.stdout, flush=True)


def _rows(value: torch.Tensor) -> list[list[int]]:
    rows: list[list[int]] = (value[None] if value.ndim == 1 else value).tolist()
    return rows


def paragraph(draft: Draft, number: bool = False) -> Text:
    """A draft for a terminal, new tokens green and masks dim, without control characters; numbered if asked."""
    pieces = [(piece.text.translate(NOT_ON_A_TERMINAL), STYLES[piece.state]) for piece in draft.pieces]
    return Text.assemble((f"[{draft.sample}] " if number else "", "dim"), *pieces)


def _on_terminal(drafts: list[Draft]) -> Group:
    return Group(*(paragraph(draft, number=len(drafts) > 1) for draft in drafts))


class _Cancelled(Exception):
    """Raised inside `generate` when nobody wants its drafts any more."""


class LladaVIteratorStreamer(LladaVStreamer):
    """Hands the drafts of a `generate` that runs in another thread to a loop: `for drafts in streamer`.

    Only the newest draft waits to be read, so a slow reader misses drafts but never the last one. `stream_generate`
    does the threading as well, and brings errors over.

    Args:
        tokenizer: a tokenizer, or a processor that has one.
        timeout: seconds to wait for a draft; for ever by default.
        **options: of `LladaVStreamer`, `on_draft` and `file` excepted.
    """

    def __init__(self, tokenizer: Any, *, timeout: float | None = None, **options: Any) -> None:
        super().__init__(tokenizer, on_draft=self._offer, **options)
        self.timeout = timeout
        self._news = threading.Condition()
        self._pending: list[Draft] | None = None
        self._error: BaseException | None = None
        self._ended = self._cancelled = False

    def __iter__(self) -> Iterator[list[Draft]]:
        return self

    def __next__(self) -> list[Draft]:
        """Wait for the next draft.

        Returns:
            One `Draft` per sample.

        Raises:
            StopIteration: after the last one; the streamer is then ready for another run.
            TimeoutError: if none comes in time.
        """
        with self._news:
            if not self._news.wait_for(lambda: self._pending is not None or self._ended, self.timeout):
                raise TimeoutError(f"no draft came in timeout={self.timeout} s; allow more, or look at generate()")
            if self._pending is not None:
                drafts, self._pending = self._pending, None
                return drafts
            error, self._error = self._error, None
            self._ended = self._cancelled = False
            raise error if error is not None else StopIteration

    def end(self) -> None:
        """Hand over the answers and end the iteration."""
        super().end()
        self.close()

    def close(self, error: BaseException | None = None) -> None:
        """End the iteration, for threads whose `generate` failed.

        Args:
            error: raised where the drafts are read, after those that still wait.
        """
        self.reset()
        with self._news:
            self._ended, self._error = True, error
            self._news.notify_all()

    def cancel(self) -> None:
        """Make `generate` fail at its next draft."""
        with self._news:
            self._cancelled = True

    def _offer(self, drafts: list[Draft]) -> None:
        with self._news:
            if self._cancelled:
                raise _Cancelled
            self._pending = drafts
            self._news.notify_all()


def stream_generate(
    model: Any, processor: Any, inputs: Mapping[str, Any], timeout: float | None = None, **settings: Any
) -> Iterator[list[Draft]]:
    """Run `generate` in a thread and yield its drafts.

    Closing the iterator early, as `break` does when nothing else holds it, ends the generation after the step that
    runs.

    Args:
        model: a LLaDA-V.
        processor: its processor, or its tokenizer.
        inputs: what the processor returned.
        timeout: seconds to wait for a draft; for ever by default.
        **settings: passed to `generate`.

    Yields:
        One `Draft` per sample, after each step unless they are read too slowly; at last the answers.

    Raises:
        Exception: whatever `generate` raises.
        TimeoutError: if no draft comes in time.
    """
    ends = settings.get("eos_token_id", model.generation_config.eos_token_id)
    if ends is not None or "eos_token_id" in settings:
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    mask = model.config.mask_token_id
    streamer = LladaVIteratorStreamer(processor, timeout=timeout, mask_token_id=mask, end_token_ids=ends)
    settings = {"tokenizer": streamer.decoder.tokenizer, **settings}

    def run() -> None:
        try:
            model.generate(**inputs, streamer=streamer, **settings)
        except BaseException as error:  # a thread has nowhere else to report to
            streamer.close(error)

    thread = threading.Thread(target=run, name="lladav-generate", daemon=True)
    thread.start()
    try:
        yield from streamer
    finally:
        streamer.cancel()
        thread.join(timeout)
