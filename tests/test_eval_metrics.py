"""Metrics and intervals: scores that can be worked out by hand, and texts at the edge of right and wrong."""

import math

import pytest

from transformers_lladav.eval_metrics import (
    METRICS,
    Ignored,
    anls,
    exact_match,
    interval,
    letter_of,
    levenshtein,
    mean_interval,
    rate,
    relaxed_accuracy,
    wilson_interval,
)


def test_exact_match_is_to_the_letter_unless_told_otherwise():
    assert exact_match(" red \n", ["blue", "red"]) == 1
    assert exact_match("Red", ["red"]) == 0
    assert exact_match("red.", ["red"]) == 0
    assert exact_match("a red star", ["red star"]) == 0
    assert exact_match("", ["red"]) == 0


@pytest.mark.parametrize(
    ("names", "given", "accepted"),
    [
        (["case"], "RED", "red"),
        (["dot"], "red.", "red"),
        (["dot"], "red", "red."),
        (["articles"], "a star at the left", "star at left"),
        (["case", "dot", "articles"], "The Cat.", "cat"),
    ],
)
def test_what_is_ignored_does_not_count_and_everything_else_does(names, given, accepted):
    assert exact_match(given, [accepted], Ignored.named(names)) == 1
    for missing in names:
        fewer = Ignored.named([name for name in names if name != missing])
        assert exact_match(given, [accepted], fewer) == 0


def test_an_answer_that_is_an_article_is_left_and_words_that_contain_one_too():
    articles = Ignored(articles=True)
    assert exact_match("A", ["B"], articles) == 0
    assert articles.normalise("A") == "A"
    assert articles.normalise("theatre in Athens") == "theatre in Athens"
    assert Ignored(dot=True).normalise("e.g. 3.5") == "e.g. 3.5"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="ignore='caps' is not known; choose among case, dot, articles"):
        Ignored.named(["case", "caps"])
    with pytest.raises(ValueError, match=f"metric='bleu' is not known; choose one of {', '.join(METRICS)}"):
        rate("bleu", "a", ["a"])


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_levenshtein(first, second, distance):
    assert levenshtein(first, second) == levenshtein(second, first) == distance


@pytest.mark.parametrize(
    ("given", "accepted", "score"),
    [
        ("invoice", ["invoice"], 1.0),
        ("  INVOICE   no ", ["Invoice No"], 1.0),  # capitals and spaces do not count
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("kitten", ["dog", "sitting", "mitten"], 1 - 1 / 6),  # the best of several
        ("abcd", ["abxy"], 0.0),  # a distance of 2 / 4, which is the limit
        ("abcde", ["abcxy"], 1 - 2 / 5),  # just within it
        ("", ["no"], 0.0),
        ("a", ["ab"], 0.0),  # 1 / 2
        ("ab", ["abc"], 1 - 1 / 3),
    ],
)
def test_anls(given, accepted, score):
    assert anls(given, accepted) == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize(
    ("given", "answer", "right"),
    [
        ("105", "100", True),  # 5 % exactly
        ("95", "100", True),
        ("105.01", "100", False),
        ("94.99", "100", False),
        ("1.05", "1", True),  # not so in binary fractions
        ("-105", "-100", True),
        ("-100", "100", False),
        ("0", "0.0", True),
        ("0.01", "0", False),
        ("1,234,567", "1234567", True),
        ("12,34", "1234", False),  # no separator of thousands: another text
        ("12%", "0.12", True),
        ("12 %", "12.5%", True),
        ("12%", "12", False),
        (".5", "0.5", True),
        ("5.", "5", True),
        ("2014", "2015", True),  # numbers are numbers
        ("Blue", "blue ", True),
        ("blue", "bluish", False),
        ("ten", "10", False),
        ("1e2", "100", False),
        ("nan", "nan", True),  # a text like others
        ("", "5", False),
    ],
)
def test_relaxed_accuracy(given, answer, right):
    assert relaxed_accuracy(given, [answer]) == right
    assert relaxed_accuracy(given, ["nothing of it", answer]) == right


@pytest.mark.parametrize(
    ("given", "number"),
    [
        ("B", 1), (" (C) ", 2), ("B. two", 1), ("A) red", 0), ("A: red", 0), ("C, I think", 2), ("B\nBecause", 1),
        ("D", None), ("b", None), ("A red star", None), ("", None), ("Blue", None), ("7", None),
    ],
)  # fmt: skip
def test_letters(given, number):
    assert letter_of(given, 3) == number


def test_rate_goes_by_the_name_of_the_metric():
    choices = ["red", "blue"]
    assert rate("letter", "(B)", ["blue"], choices) == 1
    assert rate("letter", "A", ["blue"], choices) == 0
    assert rate("letter", "blue", ["blue"], choices) == 0  # no letter
    assert rate("choice", "blue", ["blue"], choices) == 1
    assert rate("choice", "Blue", ["blue"], choices, Ignored(case=True)) == 0  # only exact match ignores anything
    assert rate("exact_match", "Blue", ["blue"], ignored=Ignored(case=True)) == 1
    assert rate("anls", "kitten", ["sitting"]) == pytest.approx(4 / 7)
    assert rate("relaxed_accuracy", "103", ["100"]) == 1
    assert rate("exact_match", "103", ["100"]) == 0


def test_intervals():
    # 90 of 100, Wilson's textbook interval; nothing right of 2: 0 .. z^2 / (2 + z^2).
    assert wilson_interval(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    low, high = wilson_interval(0, 2)
    assert low == 0.0
    assert high == pytest.approx(1.96**2 / (2 + 1.96**2))
    # Mean 0.5 of 0.4 and 0.6: standard deviation sqrt(0.02), over sqrt(2) it is 0.1.
    assert mean_interval([0.4, 0.6]) == pytest.approx((0.5 - 0.196, 0.5 + 0.196))
    assert mean_interval([0.0, 1.0]) == (0.0, 1.0)  # 0.5 +- 0.98 leaves the range
    assert mean_interval([0.3]) == (0.0, 1.0)
    assert interval("anls", [0.4, 0.6]) == mean_interval([0.4, 0.6])
    assert interval("mixed", [0.4, 0.6]) == mean_interval([0.4, 0.6])
    for metric in ("exact_match", "relaxed_accuracy", "choice", "letter"):
        assert interval(metric, [1.0, 0.0, 1.0]) == wilson_interval(2, 3)
    assert math.isclose(sum(interval("exact_match", [1.0, 0.0])), 1.0)
