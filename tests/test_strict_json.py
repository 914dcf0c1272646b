"""JSON of strangers is read as it stands or refused in words: keys that stand twice, endless nesting or numbers."""

import pytest

from transformers_lladav.strict_json import loads, once


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


def test_the_key_that_stands_twice_is_found_without_comparing_each_with_all():
    compared = []

    class Key(str):
        """Notes each comparison; keys of one object mostly have hashes of their own."""

        def __eq__(self, other):
            compared.append(other)
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    keys = [Key(number) for number in range(2000)]
    with pytest.raises(ValueError, match="the key '1999' stands twice"):
        once([(key, None) for key in [*keys, Key(1999)]])
    assert len(compared) < 2 * len(keys)  # a few pairs share a place in a table; of all pairs there are two million
