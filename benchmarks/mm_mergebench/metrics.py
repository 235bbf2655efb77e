"""Is an answer right? The released evaluation's rules as they are, and beside each the rule it stands for.

Every function takes what the model said and the question, and gives its share of a point, 0 to 1; captions are scored as a
whole in captions.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from .questions import Question

Score = Callable[[str, Question], float]

LETTERS = "ABCDE"
_ARTICLES = {"a", "an", "the"}
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS = {word: str(number) for number, word in enumerate(_DIGITS)} | {"none": "0"}
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DROPPED = re.compile(r"['’`]")
_PUNCTUATION = re.compile(r"(?<!\d)[.]|[.](?!\d)|[^\w\s.]|_")


# --- as released -----------------------------------------------------------------------------------------------------------


def exact(said: str, question: Question) -> float:
    """The same text but for case."""
    return float(said.upper() == question.answers[0].upper())


def exact_answerable(said: str, question: Question) -> float:
    """The same text but for case; anything that holds `Unanswerable` is wrong, even where that is the answer."""
    return float("Unanswerable" not in said and said.lower() == question.answers[0].lower())


def either_contains(said: str, question: Question) -> float:
    """One text is part of the other, but for case; so an empty answer is right, and so is a list of all names."""
    said, answer = said.upper(), question.answers[0].upper()
    return float(answer in said or said in answer)


def letter(said: str, question: Question) -> float:
    """`B`, `B. text`, or one single `The answer is B` with any character after it; `B.`, `(B)` and `b` are wrong."""
    return float(_released_letter(said) == question.answers[0])


def _released_letter(said: str) -> str | None:
    if len(said) == 1:
        return said if said in LETTERS else None
    if len(said) >= 3 and said[0] in LETTERS and said[1:3] == ". ":
        return said[0]
    named = re.findall(r"The answer is ([A-Z]).", said)
    return named[0] if len(named) == 1 else None


def box_cut(said: str, question: Question) -> float:
    """Overlap above one half, after the brackets and then the first and the last character are cut off.

    `[0.12, 0.2, 0.5, 0.98]` is so read as .12, 0.2, 0.5, 0.9; an answer without brackets loses the same two characters.
    """
    try:
        found = [float(part) for part in said.replace("[", "").replace("]", "")[1:-1].split(",")]
    except ValueError:
        return 0.0
    return _overlapping(found, question)


# --- as meant --------------------------------------------------------------------------------------------------------------


def vqa_accuracy(said: str, question: Question) -> float:
    """VQA's accuracy: texts compared after VQA's normalisation, against the annotators where the file has them.

    min(1, k/3) for k annotators who agree, averaged over all ways to leave one annotator out; one reference: 1 or 0.
    """
    others = [normalise(answer) for answer in question.answers[1:]]
    text = normalise(said)
    if len(others) < 2:
        return float(bool(text) and text == normalise(question.answers[0]))
    agree = sum(text == other for other in others)
    without = [min(1.0, (agree - (text == other)) / 3) for other in others]
    return sum(without) / len(without)


def same_name(said: str, question: Question) -> float:
    """The same words after normalisation; underscores count as blanks."""
    text = normalise(said.replace("_", " "))
    return float(bool(text) and text == normalise(question.answers[0].replace("_", " ")))


def letter_anywhere(said: str, question: Question) -> float:
    """The letter of an answer that says one letter, in whatever clothes: `b`, `(B)`, `B.`, `B: text`, `the answer is B`."""
    return float(find_letter(said) == question.answers[0].strip().upper())


def find_letter(said: str) -> str | None:
    """The option an answer names, None where it names none or several."""
    text = said.strip()
    first = re.match(r"[(\[\"']?([A-Ea-e])(?:[)\].:,\"']+(?:\s|$)|$)", text) or re.match(r"([B-E])\s", text)
    if first:
        return first[1].upper()
    named = set(re.findall(r"(?i:answer|option)(?:\s+(?i:is|would be))?\s*:?\s*[(\"']?([A-E])\b", text))
    return named.pop() if len(named) == 1 else None


def same_number(said: str, question: Question) -> float:
    """The same number, however it is written ($1,200.0 is 1200, 1/2 is .5), else the same words after normalisation."""
    ours, theirs = read_number(said), read_number(question.answers[0])
    if ours is None or theirs is None:
        text = normalise(said)
        return float(bool(text) and text == normalise(question.answers[0]))
    return float(math.isclose(ours, theirs, rel_tol=1e-9, abs_tol=1e-9))


def read_number(text: str) -> float | None:
    """The number a text consists of; currency, percent, separators of thousands and a full stop aside."""
    bare = _THOUSANDS.sub("", re.sub(r"[$€£%\s]", "", text).removesuffix("."))
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(/\d+)?", bare):
        return None
    above, _, below = bare.partition("/")
    if below and int(below) == 0:
        return None
    return float(Fraction(above) / int(below or 1))


def box_whole(said: str, question: Question) -> float:
    """Overlap above one half, for an answer that holds exactly four numbers, read whole."""
    found = [float(number) for number in re.findall(r"(?<![\w.])-?(?:\d+\.?\d*|\.\d+)(?![\w.]*\d)", said)]
    return _overlapping(found, question)


def normalise(text: str) -> str:
    """VQA's normal form: lower case, no punctuation (decimal points stay), number words as digits, no articles.

    Apostrophes go without a trace, on both sides of a comparison: that makes equal what VQA's table of contractions does.
    """
    bare = _PUNCTUATION.sub(" ", _DROPPED.sub("", _THOUSANDS.sub("", text.lower())))
    return " ".join(_NUMBERS.get(word, word) for word in bare.split() if word not in _ARTICLES)


def _overlapping(found: list[float], question: Question) -> float:
    if len(found) != 4 or not all(map(math.isfinite, found)):
        return 0.0
    longer = max(question.size)
    return float(overlap([value * longer for value in found], [value * longer for value in question.box]) > 0.5)


def overlap(one: list[float], other: list[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2); 0 where the union has no area.

    A box with its corners exchanged has a negative side, as released: both sides negative make a positive area.
    """
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    both = width * height
    areas = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return both / (areas - both) if areas > both else 0.0


METRICS: dict[str, Score] = {
    rule.__name__: rule
    for rule in (
        exact,
        exact_answerable,
        either_contains,
        letter,
        box_cut,
        vqa_accuracy,
        same_name,
        letter_anywhere,
        same_number,
        box_whole,
    )
}
"""Rules for one answer, by the name tasks.py calls them."""
