"""What the page shows, as HTML: nothing that anybody wrote is markup."""

import html
import re

from transformers_lladav.streaming import Piece, TokenState
from transformers_lladav.web_view import Turn, answer, conversation, figures, note, problem

HOSTILE = """<img src=x onerror="alert(1)">&'"${alert(2)}{{7*7}}</p><script>"""
DONE, FRESH, MASKED = TokenState.COMMITTED, TokenState.FRESH, TokenState.MASKED
TAGS = re.compile(r"<[^>]*>")


def words(markup):
    return html.unescape(TAGS.sub("", markup))


def test_tokens_carry_their_state_and_confidence():
    pieces = [Piece("a", DONE, 0.5), Piece(" red", FRESH, 0.98765), Piece(" ░░", MASKED), Piece(" box", DONE)]
    assert answer(pieces) == (
        '<span class="lv-rated" style="--share:0.500" title="confidence 0.500">a</span>'
        ' <span class="lv-rated lv-fresh" style="--share:0.988" title="confidence 0.988">red</span>'
        ' <span class="lv-masked" title="not written yet">░░</span>'
        ' <span class="lv-given" title="given">box</span>'
    )
    assert "lv-fresh" not in answer(pieces, live=False)


def test_the_text_is_that_of_the_pieces():
    pieces = [Piece("one", DONE, 1.0), Piece("", DONE, 0.1), Piece("\n\n", DONE, 1.0), Piece("  two", DONE, 1.0)]
    assert words(answer(pieces)) == "one\n\n  two"
    # A measure that is no share, such as minus the entropy, does not leave the scale of colours.
    assert "--share:0.000" in answer([Piece("x", DONE, -3.0)])
    assert "--share:1.000" in answer([Piece("x", DONE, 2.0)])


def test_texts_are_never_markup():
    turn = Turn(
        HOSTILE, ("a.png",), HOSTILE, (Piece(HOSTILE, DONE, 0.5), Piece(HOSTILE, MASKED), Piece(HOSTILE, DONE))
    )
    for markup in (conversation([turn], HOSTILE, turn.pieces), note(HOSTILE), problem(HOSTILE)):
        assert HOSTILE in words(markup)
        assert set(re.findall(r"<(\w+)", markup)) <= {"div", "p", "span"}
        assert "onerror" not in "".join(TAGS.findall(markup))


def test_a_conversation_shows_what_was_said_and_what_is_being_said():
    turns = [
        Turn("One?", ("a.png", "b.png"), "1", (Piece("1", FRESH, 1.0),)),
        Turn("Two?", (), "2", (Piece("2", DONE),)),
    ]
    markup = conversation(turns, "Three?", [Piece("░░", MASKED)])
    said = [words(part) for part in re.findall(r'<p class="lv-(?:question|answer)"[^>]*>.*?</p>', markup)]
    assert said == ["picture+picture One?", "1", "Two?", "2", "Three?", "░░"]
    assert markup.count("aria-busy") == 1
    assert "lv-fresh" not in markup.partition("Three?")[0]
    assert "lv-empty" in conversation([])


def test_figures_say_what_an_answer_took():
    assert words(figures(20, 21, 1.0, 0.5, full=False)) == (
        "20 tokens · 21 forward passes · 1.00 tokens per forward · 0.50 s"
    )
    assert "raise the answer length" in figures(8, 8, 1.0, 0.5, full=True)
