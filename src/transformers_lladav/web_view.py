"""What the web page shows of a conversation, as HTML: tokens coloured by confidence, masks, figures, errors.

Every text of a user or a model is escaped here and nowhere else.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .streaming import Piece, TokenState


@dataclass(frozen=True)
class Turn:
    """A question and what was answered.

    Attributes:
        question: its words.
        pictures: files of the pictures that came with it.
        answer: the words of the answer.
        pieces: the same token by token.
    """

    question: str
    pictures: tuple[str, ...]
    answer: str
    pieces: tuple[Piece, ...]


def conversation(turns: Iterable[Turn], asked: str | None = None, pieces: Sequence[Piece] = ()) -> str:
    """A conversation, with a question that is being answered at its end.

    Args:
        turns: what was said.
        asked: the question that is being answered.
        pieces: the answer so far.

    Returns:
        HTML.
    """
    parts = [_exchange(turn.question, len(turn.pictures), turn.pieces, live=False) for turn in turns]
    if asked is not None:
        parts.append(_exchange(asked, 0, pieces, live=True))
    if not parts:
        return '<p class="lv-empty">Show a picture, ask something, and watch the answer come out of its masks.</p>'
    return f'<div class="lv-talk">{"".join(parts)}</div>{LEGEND}'


def _exchange(question: str, pictures: int, pieces: Sequence[Piece], live: bool) -> str:
    shown = f'<span class="lv-shown">{"+".join(["picture"] * pictures)}</span> ' if pictures else ""
    state = ' aria-busy="true"' if live else ""
    return (
        f'<p class="lv-question" dir="auto">{shown}{html.escape(question)}</p>'
        f'<p class="lv-answer" dir="auto"{state}>{answer(pieces, live) or "&nbsp;"}</p>'
    )


def answer(pieces: Iterable[Piece], live: bool = True) -> str:
    """An answer, token by token.

    Args:
        pieces: of a draft.
        live: whether what was written last stands out.

    Returns:
        HTML: one element per piece that has text; the space before a word stands outside of it.
    """
    return "".join(_piece(piece, live) for piece in pieces if piece.text)


def _piece(piece: Piece, live: bool) -> str:
    word = piece.text.lstrip()
    space = html.escape(piece.text[: len(piece.text) - len(word)])
    if not word:
        return space
    if piece.state == TokenState.MASKED:
        return f'{space}<span class="lv-masked" title="not written yet">{html.escape(word)}</span>'
    fresh = " lv-fresh" if live and piece.state == TokenState.FRESH else ""
    if piece.confidence is None:
        return f'{space}<span class="lv-given{fresh}" title="given">{html.escape(word)}</span>'
    share = min(max(piece.confidence, 0.0), 1.0)
    told = f"confidence {piece.confidence:.3f}"
    return (
        f'{space}<span class="lv-rated{fresh}" style="--share:{share:.3f}" title="{told}">{html.escape(word)}</span>'
    )


def figures(tokens: int, passes: int, tokens_per_forward: float, seconds: float, full: bool) -> str:
    """What an answer took.

    Args:
        tokens: of the answer.
        passes: of the model.
        tokens_per_forward: the end included.
        seconds: from the question to the answer.
        full: whether the canvas ended before the answer did.

    Returns:
        HTML.
    """
    parts = [
        f"{tokens} tokens",
        f"{passes} forward passes",
        f"{tokens_per_forward:.2f} tokens per forward",
        f"{seconds:.2f} s",
    ]
    if full:
        parts.append("the canvas is full: raise the answer length")
    return f'<p class="lv-figures" role="status">{" &middot; ".join(parts)}</p>'


def note(text: str) -> str:
    """Something a user should know, such as that a model is being loaded."""
    return f'<p class="lv-figures" role="status">{html.escape(text)}</p>'


def problem(text: str) -> str:
    """What is wrong, and what to do."""
    return f'<p class="lv-problem" role="alert">{html.escape(text)}</p>'


LEGEND = (
    '<p class="lv-legend" aria-hidden="true"><span class="lv-masked">mask</span> '
    '<span class="lv-ramp"></span> unsure to sure <span class="lv-fresh">just written</span></p>'
)

# The colours are those of recorded pages.
STYLE = """
.lv-page { --lv-mask: #dfe2e8; --lv-unsure: #ffc27a; --lv-sure: #d3ebff; --lv-fresh: #12803c;
  --lv-muted: #5b5f67; --lv-wrong: #b3261e; }
.dark .lv-page { --lv-mask: #3a3f49; --lv-unsure: #8a4b00; --lv-sure: #14395c; --lv-fresh: #5ad38a;
  --lv-muted: #a9aeb8; --lv-wrong: #ffb4ab; }
.lv-page p { margin: 0; }
.lv-empty, .lv-figures, .lv-legend, .lv-question { color: var(--lv-muted); }
.lv-empty { padding: 2rem 0; text-align: center; }
.lv-question { padding-top: 1rem !important; white-space: pre-wrap; overflow-wrap: anywhere; }
.lv-shown { border: 1px solid currentColor; border-radius: 4px; font-size: .75em; padding: 0 .35em; }
.lv-answer { font-size: 1.3rem; line-height: 1.75; white-space: pre-wrap; overflow-wrap: anywhere; }
.lv-answer span { border-radius: 4px; padding: .1em 0; -webkit-box-decoration-break: clone;
  box-decoration-break: clone; }
.lv-masked { background: var(--lv-mask); color: transparent; user-select: none; box-shadow: inset 0 0 0 1px #8883; }
.lv-rated { background: color-mix(in oklab, var(--lv-sure) calc(100% * var(--share)), var(--lv-unsure)); }
.lv-fresh { outline: 2px solid var(--lv-fresh); outline-offset: -1px; }
.lv-legend { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem; font-size: .8rem; padding-top: 1rem; }
.lv-legend span { border-radius: 4px; padding: 0 .4em; }
.lv-legend .lv-masked { color: inherit; }
.lv-ramp { width: 5rem; height: .9em; background: linear-gradient(to right, var(--lv-unsure), var(--lv-sure)); }
.lv-figures { font-size: .9rem; font-variant-numeric: tabular-nums; }
.lv-problem { color: var(--lv-wrong); border-left: 4px solid currentColor; padding-left: .6rem;
  overflow-wrap: anywhere; }
"""
