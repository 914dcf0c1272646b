"""Typed control tokens are text to the tokenizer, whole, split or nested, and holes are read to the letter."""

import json
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AddedToken, AutoTokenizer, TokenizersBackend

import parity
from transformers_lladav import BUNDLED_CHECKPOINT
from transformers_lladav.chat_text_lladav import (
    MARK,
    MAX_HOLE,
    SEAM,
    as_batch,
    as_texts,
    check_continuable,
    escape,
    escape_all,
    escape_chat,
    given_any,
    prepare_tokenizer,
    split_holes,
    text_with_holes,
)

TOKENS = ("<image>", "<|eot_id|>", "[gMASK]")
PLACEHOLDERS = ("<image>", "<video>")
MASK = "<|mdm_mask|>"


def marked(text):
    """Text in which `^` stands for the mark."""
    return text.replace("^", MARK)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nothing < here [or] there", "nothing < here [or] there"),
        ("", ""),
        ("<|eot_id|>", "<^|eot_id|>"),
        ("a<|eot_id|>b<|eot_id|>", "a<^|eot_id|>b<^|eot_id|>"),
        ("<|eot<|eot_id|>_id|>", "<|eot<^|eot_id|>_id|>"),
        ("[gMASK]<image>", "[^gMASK]<^image>"),
        (f"<|eot{MARK}_id|>", "<^|eot_id|>"),
        (f"{MARK}<{MARK}{MARK}|eot_id|>{MARK}", "<^|eot_id|>"),
        ("a <|eot", "a <^|eot"),
        ("a <|eot \n", "a <^|eot \n"),
        ("a <|eot b", "a <|eot b"),
        ("x < y <", "x < y <^"),
        ("<|eot_id|", "<^|eot_id|"),
        ("<|eot_id|><", "<^|eot_id|><^"),
        ("[", "[^"),
        ("|eot_id|>", "|eot_id|>"),
    ],
)
def test_a_mark_splits_every_token_and_every_beginning_of_one_at_the_end(text, expected):
    assert escape(text, TOKENS) == marked(expected)


def test_tokens_that_overlap_are_all_split():
    assert escape("abcab", ("abc", "bca", "cab")) == marked("a^b^c^ab^")
    assert escape("aaa", ("aa",)) == marked("a^a^a^")


def test_placeholders_stay_and_what_stands_around_them_does_not():
    assert escape("<image>\n<|eot_id|><image><ima", TOKENS, ("<image>",)) == marked("<image>\n<^|eot_id|><image><^ima")
    assert escape("<ima<image>ge>", TOKENS, ("<image>",)) == marked("<^ima<image>ge>")
    already_text = marked("<^image>")
    assert escape(already_text, TOKENS, ("<image>",)) == already_text


def test_a_control_token_of_one_character_is_refused_by_its_name():
    assert escape("a § b".replace("§", "s"), ("§",)) == "a s b"
    with pytest.raises(ValueError, match="holds the control token '§'; a control token of one character cannot be"):
        escape("a § b", ("§", "<image>"))


def test_escaping_twice_is_escaping_once():
    once = escape("<|eot_id|> <image> <|eot", TOKENS)
    assert escape(once, TOKENS) == once


def test_every_string_of_nested_data_is_escaped_and_nothing_else_is_touched():
    picture, function = Image.new("RGB", (1, 1)), print
    data = {"<image>": ["<image>", ("<image>", 3, None)], "p": picture, "f": function}
    plain = marked("<^image>")
    got = escape_all(data, TOKENS)
    assert got == {plain: [plain, (plain, 3, None)], "p": picture, "f": function}
    assert got["p"] is picture
    assert data["<image>"][0] == "<image>"


def test_a_chat_is_copied_with_its_pictures_by_reference():
    picture, frames = Image.new("RGB", (1, 1)), ["<image>.png"]
    parts = [
        {"type": "image", "image": picture, "note": "<image>"},
        {"type": "video", "video": frames},
        {"type": "image", "path": "<image>.png"},
        {"type": "image_url", "image_url": {"url": "<image>.png"}},
        {"type": "text", "text": "<image>", "url": "<image>"},
        {"type": "thought", "image": "<image>"},
    ]
    chat = [
        {"role": "<image>", "content": "<image>[gMASK]", "calls": [{"type": "image", "url": "<image>"}]},
        {"role": "user", "content": tuple(parts), "type": "image", "url": "<image>"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": {"text": "<image>"}},
    ]
    before = json.dumps(chat, default=id)
    plain = marked("<^image>")
    first, second, third, fourth = escape_chat(chat, TOKENS, ("<image>",))
    assert json.dumps(chat, default=id) == before
    calls = [{"type": "image", "url": plain}]
    assert first == {"role": plain, "content": marked("<image>[^gMASK]"), "calls": calls}
    assert second["url"] == plain
    assert second["content"] == [
        {"type": "image", "image": picture, "note": plain},
        {"type": "video", "video": frames},
        {"type": "image", "path": "<image>.png"},
        {"type": "image_url", "image_url": {"url": "<image>.png"}},
        {"type": "text", "text": plain, "url": plain},
        {"type": "thought", "image": plain},
    ]
    assert second["content"][0]["image"] is picture
    assert second["content"][1]["video"] is frames
    assert third == {"role": "assistant", "content": None}
    assert fourth == {"role": "assistant", "content": {"text": plain}}


def test_a_message_that_is_no_dictionary_is_refused():
    with pytest.raises(TypeError, match="message 1 is a str; give a dictionary with the keys role and content"):
        escape_chat([{"role": "user", "content": "a"}, "b"], TOKENS)


def letters(normalizer=None):
    """A small tokenizer with a vocabulary of letters and signs, and a control token that is matched late."""
    signs = "<|>_abcdefgimo[]Mx"
    model = models.WordLevel({**{sign: index for index, sign in enumerate(signs)}, "?": 90, "word": 91}, unk_token="?")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.normalizer = normalizer
    tokenizer = TokenizersBackend(tokenizer_object=backend)
    tokenizer.add_tokens([AddedToken("<late>", normalized=True, special=True, rstrip=True)], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<plain>", normalized=True)])
    return tokenizer


def test_a_tokenizer_gets_what_it_lacks_and_nothing_that_it_need_not_know():
    tokenizer = letters()
    tokens = prepare_tokenizer(tokenizer, added=("<image>",), known=("<mask>",))
    assert tokens == ("<image>", "<late>")
    entry = next(entry for entry in tokenizer.added_tokens_decoder.values() if entry.content == "<image>")
    assert (entry.special, entry.normalized) == (True, False)
    assert tokenizer.backend_tokenizer.token_to_id("<mask>") is None
    word = tokenizer.backend_tokenizer.token_to_id("word")
    assert prepare_tokenizer(tokenizer, added=(), known=("word",)) == ("<image>", "<late>", "word")
    assert tokenizer("aword").input_ids[-1] == word == 91


def test_a_token_that_would_be_matched_after_the_mark_is_gone_is_matched_before():
    tokenizer = letters()
    late = tokenizer.convert_tokens_to_ids("<late>")
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(MARK, "")
    assert late in tokenizer(marked("a<^late>")).input_ids
    prepare_tokenizer(tokenizer, ())
    assert late not in tokenizer(marked("a<^late>")).input_ids
    assert tokenizer("<late>  a").input_ids == [late, 4]
    flags = {entry.content: entry.normalized for entry in tokenizer.added_tokens_decoder.values()}
    assert flags == {"<late>": False, "<plain>": True}


def test_marks_are_deleted_before_the_normalizer_that_was_there_and_only_once():
    tokenizer = letters(normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace("ab", "x")]))
    backend = tokenizer.backend_tokenizer
    expected = tokenizer("ABa").input_ids
    prepare_tokenizer(tokenizer, ())
    assert tokenizer(marked("A^B^a")).input_ids == expected
    once = backend.to_str()
    prepare_tokenizer(tokenizer, ())
    assert backend.to_str() == once
    entries = json.loads(once)["normalizer"]["normalizers"]
    assert [entry["type"] for entry in entries] == ["Replace", "Lowercase", "Replace"]
    assert [entry.get("content") for entry in entries] == ["", None, "x"]
    alone = letters()
    for _ in range(2):
        prepare_tokenizer(alone, ())
        assert json.loads(alone.backend_tokenizer.to_str())["normalizer"] == {
            "type": "Replace",
            "pattern": {"String": MARK},
            "content": "",
        }


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(TypeError, match="the tokenizer is a dict, which has no backend of the tokenizers library"):
        prepare_tokenizer({}, ())


@cache
def tokenizer_and_oracle(folder):
    """A prepared tokenizer, its control tokens, and the same model without any added token or normalizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = prepare_tokenizer(tokenizer, PLACEHOLDERS, (MASK,))
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    plain = Tokenizer.from_str(json.dumps({**description, "added_tokens": [], "normalizer": None}))
    return tokenizer, tokens, plain


FOLDERS = {"official": parity.OFFICIAL, "bundled": BUNDLED_CHECKPOINT}
NUMBERS = {"official": 271, "bundled": 8}


def check_that_it_is_text(name, strings):
    """Strings that were escaped one by one and joined are tokenised as text, and decoded as what was typed."""
    tokenizer, tokens, plain = tokenizer_and_oracle(FOLDERS[name])
    joined = "".join(strings).replace(MARK, "").replace(SEAM, "")
    ids = tokenizer("".join(escape(string, tokens) for string in strings), add_special_tokens=False).input_ids
    assert ids == plain.encode(joined, add_special_tokens=False).ids
    assert not {tokenizer.convert_tokens_to_ids(token) for token in tokens}.intersection(ids)
    assert tokenizer.decode(ids) == joined


@pytest.mark.parametrize("name", FOLDERS)
def test_every_control_token_is_text_whole_split_and_nested(name):
    _, tokens, _ = tokenizer_and_oracle(FOLDERS[name])
    assert len(tokens) == NUMBERS[name]
    assert {*PLACEHOLDERS, MASK, "<|eot_id|>", "<|start_header_id|>"} <= set(tokens)
    check_that_it_is_text(name, ["".join(tokens)])
    for token in tokens:
        check_that_it_is_text(name, [f"a {token} b{token}{token}"])
        check_that_it_is_text(name, [token[:3] + token + token[3:]])
        check_that_it_is_text(name, [MARK.join(token)])
        check_that_it_is_text(name, [token[:1], token[1:]])
        check_that_it_is_text(name, ["a" + token[:-1], token[-1:]])
        check_that_it_is_text(name, list(token))


FRAGMENTS = (
    *("<|eot_id|>", "<|mdm_mask|>", "<image>", "<video>", "<|start_header_id|>", "<|endoftext|>", "[CLS]", "[gMASK]"),
    *("<|", "<", "|>", ">", "|", "eot_id", "_id|>", "<|eot", "mdm_", "mask|>", "<im", "age>", "[", "CLS]", "]", "g"),
    *(MARK, SEAM, "\n", "  ", " ", "é", "本", "🙂", "e\u0301", "\u00a0", "1", "23", "system", "<role>", "</role>"),
)  # fmt: skip
PIECES = st.one_of(st.sampled_from(FRAGMENTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
STRINGS = st.lists(st.lists(PIECES, max_size=8).map("".join), max_size=4)


@pytest.mark.parametrize("name", FOLDERS)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(strings=STRINGS)
@example(strings=["<|eot", "_id|>"])
@example(strings=["<|mdm_", "", "mask", "|>"])
@example(strings=[f"<|eot{MARK}", "_id|>"])
def test_whatever_is_typed_is_text(name, strings):
    check_that_it_is_text(name, strings)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("no hole [MASK] [mask:3]", ["no hole [MASK] [mask:3]"]),
        ("Because [MASK:20], so [MASK:3].", ["Because", 20, ", so", 3, "."]),
        ("[MASK:1]", ["", 1, ""]),
        ("a  [MASK:2]  b", ["a ", 2, "  b"]),
        ("a\n[MASK:2] [MASK:3][MASK:4]", ["a\n", 2, "", 3, "", 4, ""]),
        ("[[MASK:007]]", ["[", 7, "]"]),
        (f"[MASK:{MAX_HOLE}]", ["", 65536, ""]),
    ],
)
def test_holes_are_read_with_the_space_before_them(text, pieces):
    assert split_holes(text) == pieces


@pytest.mark.parametrize("length", ["0", "00", "-1", "x", "", " 3", "3 ", "1.5", "٣", "65537", "1000000", "9" * 5000])
def test_a_hole_without_a_length_is_refused(length):
    with pytest.raises(
        ValueError, match="is no hole; a hole has a whole number of tokens from 1 to 65536 and"
    ) as caught:
        split_holes(f"a [MASK:{length}] b")
    assert str(caught.value).startswith(f"'[MASK:{length}]"[:30])
    assert str(caught.value).endswith("write [MASK:8] for eight tokens")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["[MASK:3", "[MASK:3 and [MASK:2]", "[MASK:2] [MASK:"])
def test_a_hole_that_is_not_closed_is_refused(text):
    with pytest.raises(ValueError, match="a closing bracket"):
        split_holes(text)


def test_the_text_with_holes_is_the_content_of_the_last_message():
    parts = [{"type": "text", "text": "a [MA"}, {"type": "text", "text": "SK:2]"}]
    assert text_with_holes([{"role": "assistant", "content": "[MASK:2]"}]) == "[MASK:2]"
    assert text_with_holes([{"role": "user", "content": "?"}, {"role": "assistant", "content": parts}]) == "a [MASK:2]"


@pytest.mark.parametrize(
    ("chat", "error"),
    [
        ([], "the last message of chat 3 has the role None; holes are filled only in a last message of the assistant"),
        (["[MASK:2]"], "the last message of chat 3 has the role None"),
        ([{"role": "assistant", "content": "[MASK:2]"}, {"role": "user", "content": "a"}], "has the role 'user'"),
        ([{"role": "assistant", "content": "a [MASK:0]"}], r"'\[MASK:0\]' is no hole"),
        ([{"role": "assistant", "content": None}], "has the content None; give a string, or a list of parts of type"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], "give a string, or a list of parts of type text"),
        ([{"role": "assistant", "content": ["[MASK:2]"]}], "give a string, or a list of parts of type text"),
        ([{"role": "assistant", "content": [{"type": "text", "text": 1}]}], "give a string, or a list of parts of"),
        (
            [{"role": "assistant", "content": "a"}],
            r"the last message of chat 3 is 'a', without a hole; holes are filled only in the last message of the "
            r"assistant: write \[MASK:8\] there for eight tokens\.$",
        ),
        (
            [
                {"role": "user", "content": [{"type": "text", "text": "[MASK:2]"}]},
                {"role": "assistant", "content": "a"},
            ],
            r"tokens\. There are some in other messages, where they are text\.$",
        ),
    ],
)
def test_a_chat_without_holes_in_its_last_message_is_refused(chat, error):
    with pytest.raises(ValueError, match=error):
        text_with_holes(chat, 3)


@pytest.mark.parametrize(
    "content", [None, "", " \n", [], [{"type": "text", "text": " "}], [{"type": "image"}], ["text"]]
)
def test_a_message_without_text_cannot_be_continued(content):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
    rule = r"leaves nothing to continue; leave the message out and pass add_generation_prompt=True"
    with pytest.raises(ValueError, match=f"the last message of chat 0 has the content .*{rule}"):
        check_continuable(chat)
    with pytest.raises(ValueError, match="the last message of chat 1 has the content"):
        check_continuable([chat[:1], chat])


@pytest.mark.parametrize("content", ["a", [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]])
def test_a_message_with_text_can_be_continued(content):
    check_continuable([{"role": "assistant", "content": content}])


def test_a_chat_is_told_from_a_batch_of_chats():
    message = {"role": "user", "content": "a"}
    assert as_batch([message]) == ([[message]], False)
    assert as_batch((message,)) == ([(message,)], False)
    assert as_batch([[message], [message]]) == ([[message], [message]], True)
    assert as_batch([(message,)]) == ([(message,)], True)
    assert as_batch([]) == ([[]], False)


@pytest.mark.parametrize(
    ("items", "expected"), [(None, False), ([], False), ((), False), ([1], True), ("a.png", True)]
)
def test_no_pictures_are_none_or_an_empty_list(items, expected):
    assert given_any(items) is expected


def test_one_text_and_several_of_any_kind_become_a_list():
    assert as_texts(None) is None
    assert as_texts("ab") == ["ab"]
    for several in (["a", ""], ("a", ""), iter(["a", ""])):
        assert as_texts(several) == ["a", ""]
