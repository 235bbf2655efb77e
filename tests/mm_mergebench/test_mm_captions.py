"""BLEU, ROUGE-L and CIDEr against 20 captions each scored by hand, and against COCO's own code where it is installed."""

import random
from math import exp, sqrt

import pytest
from mm_mergebench.captions import Caption, bleu, cider, mean_of_seven, rouge_l, split_words, why_not_seven


def caption(said: str, *references: str) -> Caption:
    return said.split(), [one.split() for one in references]


# --- BLEU: clipped hits / n-grams said, geometric mean, times exp(1 - r/c) where the caption is shorter ---------------

BLEU: list[tuple[str, list[str], int, float]] = [
    ("a b c d", ["a b c d"], 1, 1),
    ("a b c d", ["a b c d"], 4, 1),
    ("a b c d", ["a b c e"], 1, 3 / 4),
    ("a b c d", ["a b c e"], 2, sqrt(3 / 4 * 2 / 3)),
    ("a b c d", ["a b c e"], 3, (3 / 4 * 2 / 3 * 1 / 2) ** (1 / 3)),
    ("a b c d", ["e f g h"], 1, 0),
    ("a a a a", ["a b c d"], 1, 1 / 4),  # clipped
    ("a a a a", ["a a c d"], 1, 2 / 4),
    ("a a b b", ["a c c c", "b b c c"], 1, 3 / 4),  # clipped by the best reference of each
    ("a b", ["a b c d"], 1, exp(1 - 4 / 2)),  # too short
    ("a b c", ["a b c d"], 2, exp(1 - 4 / 3)),
    ("a b c d e", ["a b c d"], 1, 4 / 5),  # too long costs precision alone
    ("a b c", ["a b c d", "a b"], 1, 1),  # 4 and 2 are equally near to 3; the shorter counts
    ("a b c", ["a b c d e f", "a b c x"], 1, exp(1 - 4 / 3)),  # the nearest length
    ("d c b a", ["a b c d"], 1, 1),  # order does not matter to BLEU-1
    ("a b a b", ["a b c d"], 2, sqrt(2 / 4 * 1 / 3)),
    ("a b c d", ["a b x x", "x x c d"], 2, sqrt(4 / 4 * 2 / 3)),
    ("a b c d e", ["a b c d e"], 4, 1),
    ("a b c d x", ["a b c d e"], 4, (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)),
    ("the cat sat", ["the cat sat on the mat"], 3, exp(1 - 6 / 3)),
]


@pytest.mark.parametrize(("said", "references", "n", "expected"), BLEU)
def test_bleu_by_hand(said: str, references: list[str], n: int, expected: float) -> None:
    assert bleu([caption(said, *references)])[n - 1] == pytest.approx(expected, abs=1e-6)


def test_bleu_is_of_all_captions_together() -> None:
    assert bleu([caption("a b", "a b"), caption("c d e f", "c x x x")])[0] == pytest.approx((2 + 1) / (2 + 4))


# --- ROUGE-L: 2.44 P R / (R + 1.44 P) ---------------------------------------------------------------------------------


def f(precision: float, recall: float) -> float:
    return 2.44 * precision * recall / (recall + 1.44 * precision)


ROUGE: list[tuple[str, list[str], float]] = [
    ("a b c d", ["a b c d"], 1),
    ("a b c d", ["e f g h"], 0),
    ("a b", ["a b c d"], f(1, 1 / 2)),
    ("a b c d", ["a b"], f(1 / 2, 1)),
    ("a c", ["a b c d"], f(1, 1 / 2)),  # a subsequence need not be together
    ("d c b a", ["a b c d"], f(1 / 4, 1 / 4)),
    ("a x b y", ["a b"], f(1 / 2, 1)),
    ("a a a a", ["a b"], f(1 / 4, 1 / 2)),
    ("a b c", ["a c b"], f(2 / 3, 2 / 3)),
    ("a b c d", ["a b", "a b c d e f g h"], f(1, 1)),  # the best precision and the best recall, of different references
    ("a b c", ["x", "a y"], f(1 / 3, 1 / 2)),
    ("a", ["a"], 1),
    ("a", ["b"], 0),
    ("", ["a b"], 0),
    ("a b c d e", ["a b c d"], f(4 / 5, 1)),
    ("the cat sat", ["the cat sat on the mat"], f(1, 1 / 2)),
    ("on the mat the cat", ["the cat on the mat"], f(3 / 5, 3 / 5)),
    ("a b c d", ["b d"], f(1 / 2, 1)),
    ("a b a b", ["b a b a"], f(3 / 4, 3 / 4)),
    ("x a", ["a x", "a"], f(1 / 2, 1)),
]


@pytest.mark.parametrize(("said", "references", "expected"), ROUGE)
def test_rouge_by_hand(said: str, references: list[str], expected: float) -> None:
    assert rouge_l([caption(said, *references)]) == pytest.approx(expected)


def test_rouge_is_the_mean_of_the_captions() -> None:
    assert rouge_l([caption("a", "a"), caption("b", "c"), caption("d", "d"), caption("e", "f")]) == pytest.approx(0.5)


# --- CIDEr: two captions, so every n-gram of one of them weighs log 2; 10/4 of the sum of four cosines ----------------

OTHER = caption("p q r s", "p q r s")
CIDER: list[tuple[str, list[str], float]] = [
    ("a b c d", ["a b c d"], 10),
    ("a b c", ["a b c"], 7.5),  # there are no 4-grams
    ("a b", ["a b"], 5),
    ("a", ["a"], 2.5),
    ("a b c d e", ["a b c d e"], 10),
    ("e f g h", ["a b c d"], 0),
    ("a b c d", ["a b c e"], 2.5 * (3 / 4 + 2 / 3 + 1 / 2)),
    ("a b", ["a b c d"], 2.5 * (2 / (sqrt(2) * 2) + 1 / sqrt(3)) * exp(-4 / 72)),  # two bigrams shorter
    ("a b c d", ["a b"], 2.5 * (2 / (sqrt(2) * 2) + 1 / sqrt(3)) * exp(-4 / 72)),
    ("a", ["a b c d"], 2.5 * (1 / 2) * exp(-9 / 72)),
    ("d c b a", ["a b c d"], 2.5),
    ("a a a a", ["a b c d"], 2.5 * (1 * 1 / (4 * 2))),  # clipped: repeating a word does not pay
    ("a b c d", ["a b c d", "e f g h"], 5),  # the mean over references
    ("a b c d", ["a b c d", "a b c d"], 10),
    ("", ["a b c d"], 0),
    ("p q r s", ["a b c d"], 0),  # the other caption's words
    (
        "a b c d",
        ["a b c d a b"],
        2.5 * (6 / (2 * sqrt(10)) + 4 / (sqrt(3) * sqrt(7)) + 2 / (sqrt(2) * 2) + 1 / sqrt(3)) * exp(-4 / 72),
    ),
    ("a b x y", ["a b c d", "x y z w"], 2.5 * (2 / 4 + 1 / 3)),  # half of each: both references give the same
    ("a b c", ["a b d"], 2.5 * (2 / 3 + 1 / 2)),
    ("b", ["a b"], 2.5 * (1 / sqrt(2)) * exp(-1 / 72)),
]


@pytest.mark.parametrize(("said", "references", "expected"), CIDER)
def test_cider_by_hand(said: str, references: list[str], expected: float) -> None:
    scores = cider([caption(said, *references), OTHER])
    assert scores == pytest.approx([expected, 10])


def test_words_that_all_references_have_weigh_nothing() -> None:
    scores = cider([caption("the a", "the a"), caption("the", "the b")])
    assert scores == pytest.approx([2.5 * 2, 0])
    assert cider([caption("a b c d", "a b c d")]) == [0], "one caption alone"


# --- against COCO's code ----------------------------------------------------------------------------------------------


def test_cocos_code_agrees() -> None:
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed: COCO's own scores are not compared")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    draw = random.Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(["a", "the", "dog", "cat", "sat", "on", "mat", "red", "big", "of"], k=draw.randint(1, 12)))

    ours = {i: [sentence()] for i in range(40)}
    theirs = {i: [sentence() for _ in range(draw.randint(1, 5))] for i in range(40)}
    captions = [caption(ours[i][0], *theirs[i]) for i in range(40)]
    expected, _ = Bleu(4).compute_score(theirs, ours, verbose=0)
    assert bleu(captions) == pytest.approx(expected, rel=1e-6)
    assert rouge_l(captions) == pytest.approx(Rouge().compute_score(theirs, ours)[0])
    assert cider(captions) == pytest.approx(list(Cider().compute_score(theirs, ours)[1]))


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not_seven()), reason=why_not_seven())
def test_the_mean_of_seven_and_our_words_are_near_cocos() -> None:
    said = ["A dog runs on the beach.", "Two men, one with\u2028a red hat,\r\ndon't play.", "nothing"]
    references = [["A dog is running on a beach!"], ["Two men play cards", "Men don't play."], ["A cat's toy"]]
    figures = mean_of_seven(said, references)
    mean = figures.pop("mean")
    assert list(figures) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    assert mean == pytest.approx(sum(figures.values()) / 7)
    captions = [(split_words(text), [split_words(one) for one in texts]) for text, texts in zip(said, references, strict=True)]
    assert 100 * sum(cider(captions)) / 3 == pytest.approx(figures["CIDEr"])


def test_without_java_there_is_no_mean_of_seven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mm_mergebench.captions.shutil.which", lambda name: None)
    assert mean_of_seven(["a"], [["a"]]) == {}
    assert "METEOR needs" in why_not_seven()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog, running!", "a dog running"),
        ("It's the man's hat.", "it 's the man 's hat"),
        ("They don't know", "they do n't know"),
        ("T-shirt for 1,000.50 (new)", "t-shirt for 1,000.50 new"),
        ('"Stop" -- he said ...', "stop he said"),
        ("", ""),
    ],
)
def test_words(text: str, words: str) -> None:
    assert split_words(text) == words.split()


def test_twenty_each() -> None:
    assert [len(cases) for cases in (BLEU, ROUGE, CIDER)] == [20, 20, 20]
