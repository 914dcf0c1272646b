"""What an answer is worth: metrics between 0 and 1, and intervals of their means."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Literal, get_args

MetricName = Literal["exact_match", "anls", "relaxed_accuracy", "choice", "letter"]
METRICS: tuple[str, ...] = get_args(MetricName)
# Nothing between wrong and right: their means have Wilson's interval.
BINARY = frozenset({"exact_match", "relaxed_accuracy", "choice", "letter"})
NEEDS_CHOICES = frozenset({"choice", "letter"})

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ANLS_LIMIT = 0.5
TOLERANCE = Decimal("0.05")
Z95 = 1.96

_NUMBER = re.compile(r"([-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.[0-9]))(?:\.[0-9]*)?)\s?(%?)")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b\s*", re.IGNORECASE)
_LETTER = re.compile(r"\(?([A-Z])(?=[).:,]|\s*(?:\n|$))")


@dataclass(frozen=True)
class Ignored:
    """What exact match does not look at; spaces around an answer never count.

    Attributes:
        case: capitals.
        dot: a full stop at the end.
        articles: the words a, an and the.
    """

    case: bool = False
    dot: bool = False
    articles: bool = False

    @classmethod
    def named(cls, names: Sequence[str]) -> "Ignored":
        """From names.

        Args:
            names: any of "case", "dot" and "articles".

        Returns:
            What is ignored.

        Raises:
            ValueError: for another name.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"ignore={unknown[0]!r} is not known; choose among {', '.join(known)}")
        return cls(**{name: name in names for name in known})

    def normalise(self, text: str) -> str:
        """A text without what is ignored.

        Args:
            text: an answer.

        Returns:
            What is compared.
        """
        text = text.strip()
        if self.dot:
            text = text.removesuffix(".").rstrip()
        if self.articles:
            text = " ".join(_ARTICLE.sub("", text).split()) or text  # an answer may be the letter A
        return text.casefold() if self.case else text


def exact_match(given: str, accepted: Sequence[str], ignored: Ignored | None = None) -> float:
    """Whether an answer is one of those accepted, to the letter.

    Args:
        given: the answer.
        accepted: right answers.
        ignored: what does not count; nothing but spaces around by default.

    Returns:
        1 or 0.
    """
    normalise = (ignored or Ignored()).normalise
    return float(normalise(given) in map(normalise, accepted))


def levenshtein(first: str, second: str) -> int:
    """Fewest insertions, deletions and replacements of characters between two texts.

    Args:
        first: a text.
        second: another.

    Returns:
        Their number.
    """
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        diagonal, row[0] = row[0], number
        for place, other in enumerate(second, start=1):
            cost = diagonal + (letter != other)
            diagonal = row[place]
            row[place] = min(cost, row[place] + 1, row[place - 1] + 1)
    return row[-1]


def anls(given: str, accepted: Sequence[str]) -> float:
    """Normalised Levenshtein similarity to the nearest accepted answer (ANLS, arXiv:1907.00490, equation 1).

    As in the protocol of DocVQA capitals do not count, nor how many spaces stand between words.

    Args:
        given: the answer.
        accepted: right answers.

    Returns:
        1 minus the distance over the length of the longer text; 0 where that distance is 0.5 or more.
    """
    return max(_similarity(_lowered(given), _lowered(answer)) for answer in accepted)


def _lowered(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(given: str, answer: str) -> float:
    longest = max(len(given), len(answer))
    shortest = min(len(given), len(answer))
    if longest == 0:
        return 1.0
    if longest - shortest >= ANLS_LIMIT * longest:  # the distance is at least the difference of the lengths
        return 0.0
    distance = levenshtein(given, answer) / longest
    return 1 - distance if distance < ANLS_LIMIT else 0.0


def relaxed_accuracy(given: str, accepted: Sequence[str]) -> float:
    """Whether an answer is right in the sense of ChartQA (arXiv:2203.10244, section 5).

    A number may be off by 5 % of the expected one; everything else must agree to the letter, capitals apart. As in
    common implementations a percent sign stands for hundredths: 12% is 0.12, and not 12. Unlike in these, commas may
    separate thousands, and 0 is a number like others, near which nothing is.

    Args:
        given: the answer.
        accepted: right answers.

    Returns:
        1 or 0.
    """
    return float(any(_nearly(given, answer) for answer in accepted))


def _nearly(given: str, answer: str) -> bool:
    number, wanted = _number(given), _number(answer)
    if number is None or wanted is None:
        return given.strip().casefold() == answer.strip().casefold()
    return abs(number - wanted) <= TOLERANCE * abs(wanted)


def _number(text: str) -> Decimal | None:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        return None
    value = Decimal(found[1].replace(",", ""))
    return value / 100 if found[2] else value


def letter_of(given: str, choices: int) -> int | None:
    """Which choice an answer names by its letter.

    Args:
        given: such as "B", "(B)", "B." or "B) two"; a letter before a word, as in "A star", is an article.
        choices: how many there are.

    Returns:
        The number of the choice from 0; None if the answer does not begin with a letter of one.
    """
    found = _LETTER.match(given.strip())
    number = LETTERS.index(found[1]) if found else choices
    return number if number < choices else None


def rate(
    metric: str, given: str, accepted: Sequence[str], choices: Sequence[str] = (), ignored: Ignored | None = None
) -> float:
    """Score an answer by the name of a metric.

    Args:
        metric: one of `METRICS`.
        given: the answer; for "choice" the chosen text.
        accepted: right answers.
        choices: for "letter", the texts behind the letters.
        ignored: for "exact_match", what does not count.

    Returns:
        0 to 1.

    Raises:
        ValueError: for an unknown metric.
    """
    check_metric(metric)
    if metric == "anls":
        return anls(given, accepted)
    if metric == "relaxed_accuracy":
        return relaxed_accuracy(given, accepted)
    if metric == "letter":
        number = letter_of(given, len(choices))
        return float(number is not None and choices[number] in accepted)
    return exact_match(given, accepted, ignored if metric == "exact_match" else None)


def check_metric(name: str) -> None:
    """Refuse an unknown metric.

    Args:
        name: of the metric.

    Raises:
        ValueError: listing those there are.
    """
    if name not in METRICS:
        raise ValueError(f"metric={name!r} is not known; choose one of {', '.join(METRICS)}")


def wilson_interval(right: float, questions: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson, 1927).

    Args:
        right: how many were right.
        questions: of how many.

    Returns:
        Its ends.
    """
    n, share = questions, right / questions
    centre = (share + Z95 * Z95 / (2 * n)) / (1 + Z95 * Z95 / n)
    spread = Z95 / (1 + Z95 * Z95 / n) * math.sqrt(share * (1 - share) / n + Z95 * Z95 / (4 * n * n))
    return max(0.0, centre - spread), min(1.0, centre + spread)  # rounding may lead a hair beyond


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of a mean of scores from 0 to 1, by the normal approximation.

    Args:
        scores: one per question.

    Returns:
        Its ends, within 0 and 1; of a single score these, because it says nothing about the spread.
    """
    n, mean = len(scores), math.fsum(scores) / len(scores)
    if n == 1:
        return 0.0, 1.0
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / (n - 1))
    spread = Z95 * deviation / math.sqrt(n)
    return max(0.0, mean - spread), min(1.0, mean + spread)


def interval(metric: str, scores: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of a mean score.

    Args:
        metric: Wilson's interval where it is one of `BINARY`, the normal one elsewhere.
        scores: one per question.

    Returns:
        Its ends.
    """
    return wilson_interval(math.fsum(scores), len(scores)) if metric in BINARY else mean_interval(scores)
