"""Every rule for one answer against 20 answers scored by hand from its written definition, released oddities among them."""

import pytest
from mm_mergebench.metrics import METRICS, find_letter, normalise, read_number
from mm_mergebench.questions import Question
from mm_mergebench.tasks import TASKS

Case = tuple[str, str, int]
"""What was said, the answer, 1 for right."""

EXACT: list[Case] = [
    ("down", "down", 1),
    ("Down", "down", 1),
    ("DOWN", "down", 1),
    ("3", "3", 1),
    ("yes", "Yes", 1),
    ("net shop", "NET SHOP", 1),
    ("straße", "STRASSE", 1),  # upper case of ß
    ("$1,200", "$1,200", 1),
    ("", "", 1),
    ("(B)", "(b)", 1),
    ("down.", "down", 0),  # a full stop
    (" down", "down", 0),  # blanks are stripped when the answer is written, not here
    ("the net", "net", 0),
    ("1200", "1,200", 0),
    ("three", "3", 0),
    ("3.0", "3", 0),
    ("B.", "B", 0),
    ("B. because", "B", 0),
    ("", "B", 0),
    ("gray", "grey", 0),
]
ANSWERABLE: list[Case] = [
    ("The Sea", "The Sea", 1),
    ("the sea", "The Sea", 1),
    ("THE SEA", "the sea", 1),
    ("no", "No", 1),
    ("unanswerable", "Unanswerable", 1),  # only the capital U is looked for
    ("J. K. Rowling", "j. k. rowling", 1),
    ("2001", "2001", 1),
    ("", "", 1),
    ("Children's Books", "children's books", 1),
    ("UNANSWERABLE", "unanswerable", 1),
    ("Unanswerable", "Unanswerable", 0),  # the right answer, called wrong
    ("Unanswerable", "unanswerable", 0),
    ("Unanswerable, no text", "The Sea", 0),
    ("The Sea (Unanswerable)", "The Sea (Unanswerable)", 0),
    ("The Sea.", "The Sea", 0),
    ("Sea", "The Sea", 0),
    ("The Sea by A. Bee", "The Sea", 0),
    ("", "The Sea", 0),
    ("straße", "STRASSE", 0),  # lower case keeps ß, unlike `exact`
    ("Childrens Books", "Children's Books", 0),
]
CONTAINS: list[Case] = [
    ("Golden retriever", "Golden retriever", 1),
    ("a golden retriever.", "Golden retriever", 1),
    ("retriever", "Golden retriever", 1),
    ("dog or golden retriever", "Golden Retriever", 1),
    ("", "Golden retriever", 1),  # an empty answer is part of everything
    ("e", "Castle", 1),  # so is a letter
    ("Peacock", "Cock", 1),
    ("Crane", "Crane2", 1),
    ("Hip", "Whippet", 1),
    ("Not a castle", "Castle", 1),
    ("Doormat, Chime, Castle, Fig", "Fig", 1),  # and a list of everything is right
    ("crane2", "Crane2", 1),
    ("Pomeranian", "Golden retriever", 0),
    ("Golden-retriever", "Golden retriever", 0),
    ("golden_retriever", "Golden retriever", 0),
    ("Cranes", "Crane2", 0),
    ("gas mask", "Gasmask", 0),
    ("Jack o lantern", "Jack-o'-lantern", 0),
    ("koala bear ", "Sloth bear", 0),
    ("unknown", "Castle", 0),
]
LETTER: list[Case] = [
    ("B", "B", 1),
    ("A", "A", 1),
    ("E", "E", 1),
    ("B. the second", "B", 1),
    ("B. ", "B", 1),
    ("The answer is B.", "B", 1),
    ("So. The answer is C. Because", "C", 1),
    ("The answer is D!", "D", 1),  # any character after the letter
    ("The answer is Because", "B", 1),  # and any word that begins with it
    ("A. or B", "A", 1),
    ("b", "B", 0),
    ("B.", "B", 0),  # shorter than three characters
    ("(B)", "B", 0),
    ("B: the second", "B", 0),
    ("B the second", "B", 0),
    ("The answer is B", "B", 0),  # nothing after the letter
    ("the answer is B.", "B", 0),
    ("The answer is A. The answer is B.", "B", 0),  # two
    ("", "B", 0),
    ("C", "B", 0),
]
LETTER_ANYWHERE: list[Case] = [
    ("B", "B", 1),
    ("b", "B", 1),
    ("B.", "B", 1),
    ("(B)", "B", 1),
    ("[c]", "C", 1),
    ("B: the second", "B", 1),
    ("B) the second", "B", 1),
    ("B the second", "B", 1),
    ("B. the second", "B", 1),
    ("The answer is B", "B", 1),
    ("the answer is (d).", "D", 0),  # a small letter in a sentence may be an article
    ("The correct answer is: E", "E", 1),
    ("Answer: A", "A", 1),
    ("I would choose option C because of A", "C", 1),
    ("A", "a", 1),
    ("A dog is there", "A", 0),  # an article
    ("The answer is A. No, the answer is B", "B", 0),  # two
    ("", "B", 0),
    ("Because it is wet", "B", 0),
    ("F", "F", 0),  # no option
]
NAME: list[Case] = [
    ("Golden retriever", "Golden retriever", 1),
    ("golden retriever.", "Golden retriever", 1),
    ("a golden retriever", "Golden retriever", 1),
    ("golden_retriever", "Golden retriever", 1),
    ("Golden-retriever", "Golden retriever", 1),
    ("Jack-o'-lantern", "Jack-o'-lantern", 1),
    ("jack o lantern", "Jack-o'-lantern", 1),
    ("CRANE2", "Crane2", 1),
    ("The koala!", "Koala", 1),
    ("carpenters kit", "Carpenter's kit", 1),
    ("Peacock", "Cock", 0),
    ("retriever", "Golden retriever", 0),
    ("Crane", "Crane2", 0),
    ("", "Golden retriever", 0),
    (".", "Golden retriever", 0),
    ("dog or golden retriever", "Golden retriever", 0),
    ("Doormat, Chime, Castle, Fig", "Fig", 0),
    ("Hip", "Whippet", 0),
    ("gas mask", "Gasmask", 0),
    ("Sloth", "Sloth bear", 0),
]
VQA: list[Case] = [
    ("down", "down", 1),
    ("Down.", "down", 1),
    ("the net", "net", 1),
    ("two", "2", 1),
    ("ten", "10", 1),
    ("none", "0", 1),
    ("1,200", "1200", 1),
    ("3.5", "3.5", 1),
    ("don't walk", "dont walk", 1),
    ("red, white and blue", "red white and blue", 1),
    ("on  the\nleft", "on left", 1),
    ("(yes)", "yes", 1),
    ("t-shirt", "t shirt", 1),
    ("35", "3.5", 0),  # a decimal point stays
    ("120", "1,200", 0),
    ("", "net", 0),
    ("the", "a", 0),  # nothing is left to compare
    ("nets", "net", 0),
    ("eleven", "11", 0),  # VQA's table ends at ten
    ("grey", "gray", 0),
]
NUMBER: list[Case] = [
    ("1,200", "1200", 1),
    ("$1,200.00", "1,200", 1),
    ("1200.", "1,200", 1),
    ("1/2", "0.5", 1),
    ("-3", "-3.0", 1),
    ("+7", "7", 1),
    (".5", "0.50", 1),
    ("45%", "45", 1),
    ("€ 3", "3", 1),
    ("6/3", "2", 1),
    ("Yes", "yes", 1),  # words, where one of them is no number
    ("the red one", "red 1", 1),
    ("12,34", "1234", 0),  # no separator of thousands
    ("1200", "1201", 0),
    ("1.2", "12", 0),
    ("3 apples", "3", 0),
    ("1/0", "0", 0),
    ("", "0", 0),
    ("two", "3", 0),
    ("0.333", "1/3", 0),
]

TABLES = {
    "exact": EXACT,
    "exact_answerable": ANSWERABLE,
    "either_contains": CONTAINS,
    "letter": LETTER,
    "letter_anywhere": LETTER_ANYWHERE,
    "same_name": NAME,
    "vqa_accuracy": VQA,
    "same_number": NUMBER,
}
ALL = [pytest.param(rule, *case, id=f"{rule}-{case[0]}-{case[1]}") for rule, cases in TABLES.items() for case in cases]


@pytest.mark.parametrize(("rule", "said", "answer", "points"), ALL)
def test_scored_by_hand(rule: str, said: str, answer: str, points: int) -> None:
    assert METRICS[rule](said, Question(0, "q", "?", None, answers=(answer,))) == points


# --- boxes ------------------------------------------------------------------------------------------------------------

HALF = (0.0, 0.0, 1.0, 0.5)
CORNER = (0.1, 0.2, 0.5, 0.6)
BOXES: list[tuple[str, tuple[float, ...], int, int]] = [
    # said, the true box, points as released, points read whole
    ("[0.1, 0.2, 0.5, 0.6]", CORNER, 0, 1),  # released: .1, 0.2, 0.5, 0. is no box at all
    ("[0.10, 0.20, 0.50, 0.60]", CORNER, 1, 1),  # released: .10, 0.20, 0.50, 0.6
    ("0.10, 0.20, 0.50, 0.60", CORNER, 1, 1),  # without brackets the same two characters go
    ("[0.10,0.20,0.50,0.60]", CORNER, 1, 1),
    ("[[0.10, 0.20, 0.50, 0.60]]", CORNER, 1, 1),
    ("[0.00, 0.00, 1.00, 0.99]", HALF, 1, 1),  # released: y2 is 0.9, overlap .5/.9; whole: .5/.99
    ("[0.00, 0.00, 1.00, 1.00]", HALF, 0, 0),  # overlap is one half, which is not above it
    ("[1.00, 0.20, 0.50, 0.60]", CORNER, 1, 0),  # released: x1 is .00, overlap .16/.2
    ("[0.10, 0.20, 0.50, 0.29]", CORNER, 0, 0),
    ("[0.10, 0.20, 0.50, 0.45]", (0.1, 0.2, 0.5, 0.65), 0, 1),  # whole: .25/.45; released: y2 is 0.4, .2/.45
    ("[0.10, 0.20, 0.50, 0.6]", CORNER, 0, 1),  # released: y2 is 0.
    ("box [0.10, 0.20, 0.50, 0.60]", CORNER, 0, 1),
    ("[0.10, 0.20, 0.50, 0.60].", CORNER, 1, 1),  # the full stop is the last character
    ("[0.10, 0.20, 0.50]", CORNER, 0, 0),
    ("[0.10, 0.20, 0.50, 0.60, 0.70]", CORNER, 0, 0),
    ("", CORNER, 0, 0),
    ("[0.60, 0.70, 0.90, 0.90]", CORNER, 0, 0),  # apart
    ("[0.20, 0.30, 0.50, 0.60]", CORNER, 1, 1),  # inside: .09/.16
    ("[0.25, 0.35, 0.50, 0.60]", CORNER, 0, 0),  # inside: .0625/.16
    ("[nan, 0.20, 0.50, 0.60]", CORNER, 0, 0),
]


@pytest.mark.parametrize(("said", "box", "released", "whole"), BOXES)
def test_boxes_scored_by_hand(said: str, box: tuple[float, ...], released: int, whole: int) -> None:
    question = Question(0, "q", "?", None, box=box, size=(640.0, 480.0))
    assert (METRICS["box_cut"](said, question), METRICS["box_whole"](said, question)) == (released, whole)


# --- ten annotators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("agree", "points"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_with_ten_annotators(agree: int, points: float) -> None:
    """Leaving one of ten out: k agree in 10 - k ways, k - 1 in k ways; min(1, ./3) of each."""
    others = tuple(["the net"] * agree + [f"other {i}" for i in range(10 - agree)])
    question = Question(0, "q", "?", None, answers=("net", *others))
    assert METRICS["vqa_accuracy"]("Net.", question) == pytest.approx(points)


# --- small parts ------------------------------------------------------------------------------------------------------


def test_parts() -> None:
    assert normalise("The 2nd, of 1,000 (One)!") == "2nd of 1000 1"
    assert read_number("three") is None
    assert find_letter("A or B") is None


def test_every_rule_has_twenty_cases_and_every_task_has_rules() -> None:
    assert all(len(cases) == 20 for cases in TABLES.values())
    assert len(BOXES) == 20
    named = {rule for task in TASKS for rule in (task.official, task.corrected)} - {"caption_mean", "cider"}
    assert named == set(METRICS) == {*TABLES, "box_cut", "box_whole"}
