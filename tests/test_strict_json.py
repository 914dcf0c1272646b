"""JSON that Python would read without a word, or not at all."""

import pytest

from transformers_lladav.strict_json import loads


def test_ordinary_json_is_read():
    assert loads('{"a": [1, {"a": null}], "b": {"a": "\\ud83d\\ude00"}}') == {
        "a": [1, {"a": None}],
        "b": {"a": "\U0001f600"},
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 1}', "the key 'a' stands twice in an object; remove one of them"),
        ('[{"x": {"b": 1, "c": 2, "b": 3}}]', "the key 'b' stands twice"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 50_000, "nested too deeply"),
        ("1" * 5000, "digits"),
        ("{", "Expecting property name"),
        ("", "Expecting value"),
    ],
)
def test_what_would_be_lost_or_never_end_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        loads(text)
