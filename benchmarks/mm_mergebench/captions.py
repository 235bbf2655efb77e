"""Captions against references: BLEU, ROUGE-L and CIDEr of COCO's caption evaluation, over texts that are tokenized already.

METEOR needs the tables in its authors' Java program; `mean_of_seven` takes it, and COCO's tokenizer, from the package
pycocoevalcap where that and Java are installed.
"""

from __future__ import annotations

import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

Words = Sequence[str]
Caption = tuple[Words, Sequence[Words]]
"""What was said, and its references, each as words."""

LONGEST = 4
_TINY, _SMALL = 1e-15, 1e-9
"""COCO's own guards against 0 in BLEU."""
_SPREAD = 6.0
"""CIDEr-D's sigma: how fast a caption of another length loses."""
_WORD = re.compile(r"\d+(?:[.,:]\d+)*|\w+(?:-\w+)*|'(?:s|m|d|re|ve|ll)\b|[^\w\s]")
_CLITIC = re.compile(r"(\w+?)(n't|'(?:s|m|d|re|ve|ll))\b")
_PUNCTUATION = frozenset("'`.?!,:;-\"()[]{}…“”‘’") | {"--", "..."}


def split_words(text: str) -> list[str]:
    """Words in lower case without punctuation, near to what COCO's (Penn Treebank) tokenizer gives; clitics are words."""
    spaced = _CLITIC.sub(r"\1 \2", text.lower())
    words = [word for piece in spaced.split() for word in ([piece] if piece == "n't" else _WORD.findall(piece))]
    return [word for word in words if word not in _PUNCTUATION]


def bleu(captions: Sequence[Caption]) -> list[float]:
    """BLEU-1 to BLEU-4 over all captions together, counts clipped by the best reference, length that of the closest one.

    (prod_k p_k)^(1/n) * min(1, exp(1 - r/c)); p_k = (hits_k + 1e-15) / (n-grams said_k + 1e-9). No captions: zeros.
    Source: Papineni et al. 2002, as in COCO's caption evaluation.
    """
    hits, said_grams, said_length, reference_length = [0] * LONGEST, [0] * LONGEST, 0, 0
    for said, references in captions:
        said_length += len(said)
        reference_length += min((len(one) for one in references), key=lambda length: (abs(length - len(said)), length))
        for n in range(LONGEST):
            counts = _grams(said, n + 1)
            most: Counter[tuple[str, ...]] = Counter()
            for one in references:
                most |= _grams(one, n + 1)
            hits[n] += (counts & most).total()
            said_grams[n] += max(0, len(said) - n)
    precisions = [(hit + _TINY) / (grams + _SMALL) for hit, grams in zip(hits, said_grams, strict=True)]
    ratio = (said_length + _TINY) / (reference_length + _SMALL)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [brevity * math.prod(precisions[:n]) ** (1 / n) for n in range(1, LONGEST + 1)]


def rouge_l(captions: Sequence[Caption]) -> float:
    """Mean over captions of F_1.2 of the best precision and the best recall (of any reference each) of common subsequences.

    (1 + b^2) P R / (R + b^2 P), b = 1.2; 0 where nothing is common, and for no captions.
    Source: Lin 2004, as in COCO's caption evaluation.
    """
    return _mean([_rouge_l(said, references) for said, references in captions])


def _rouge_l(said: Words, references: Sequence[Words]) -> float:
    common = [_common_subsequence(said, one) for one in references]
    precision = max(common) / max(1, len(said))
    recall = max(length / max(1, len(one)) for length, one in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def cider(captions: Sequence[Caption]) -> list[float]:
    """CIDEr-D of every caption, 0 to 10; their mean is the score of all.

    10 * mean over n = 1..4 and references of  exp(-d^2 / 72) * sum_g min(h_g, r_g) r_g / (|h| |r|),  with
    h_g, r_g = count * (log captions - log max(1, captions with g in a reference)) and d the difference in bigrams.
    One caption alone scores 0: every n-gram of its references is then in all of them.
    Source: Vedantam et al. 2015, as in COCO's caption evaluation.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    for _, references in captions:
        seen.update({gram for one in references for n in range(LONGEST) for gram in _grams(one, n + 1)})
    total = math.log(max(1, len(captions)))
    scores: list[float] = []
    for said, references in captions:
        ours = _weigh(said, seen, total)
        each = [_similarity(ours, _weigh(one, seen, total), _bigrams(said) - _bigrams(one)) for one in references]
        scores.append(10 * _mean(each))
    return scores


_Weighed = list[dict[tuple[str, ...], float]]


def _weigh(words: Words, seen: Mapping[tuple[str, ...], int], total: float) -> _Weighed:
    return [
        {gram: count * (total - math.log(max(1, seen.get(gram, 0)))) for gram, count in _grams(words, n + 1).items()}
        for n in range(LONGEST)
    ]


def _similarity(ours: _Weighed, theirs: _Weighed, difference: int) -> float:
    penalty = math.exp(-(difference**2) / (2 * _SPREAD**2))
    values: list[float] = []
    for mine, other in zip(ours, theirs, strict=True):
        dot = sum(min(weight, other.get(gram, 0.0)) * other.get(gram, 0.0) for gram, weight in mine.items())
        norms = math.sqrt(sum(w * w for w in mine.values())) * math.sqrt(sum(w * w for w in other.values()))
        values.append(penalty * dot / norms if norms else 0.0)
    return _mean(values)


def mean_of_seven(said: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """The released score of captions, in percent: the plain mean of BLEU-1..4, METEOR, ROUGE-L and CIDEr, and the seven.

    CIDEr goes from 0 to 10 and the others to 1, so it outweighs them. Empty where `why_not_seven` says why.
    """
    if why_not_seven():
        return {}
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenizer = PTBTokenizer()
    ours = tokenizer.tokenize({i: [_one_line(text)] for i, text in enumerate(said)})
    theirs = tokenizer.tokenize({i: [_one_line(text) for text in texts] for i, texts in enumerate(references)})
    captions = [(ours[i][0].split(), [text.split() for text in theirs[i]]) for i in range(len(said))]
    meteor = Meteor()
    try:
        score, _ = meteor.compute_score(theirs, ours)
    finally:
        _close(meteor.meteor_p)
    figures = {f"BLEU-{n}": value for n, value in enumerate(bleu(captions), 1)}
    figures |= {"METEOR": score, "ROUGE-L": rouge_l(captions), "CIDEr": _mean(cider(captions))}
    percent = {name: 100 * value for name, value in figures.items()}
    return {"mean": _mean(list(percent.values())), **percent}


def why_not_seven() -> str:
    """Why METEOR cannot be computed here; empty where it can."""
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "METEOR needs the package pycocoevalcap (and Java): pip install pycocoevalcap"
    return "" if shutil.which("java") else "METEOR needs Java: install a Java runtime"


def _one_line(text: str) -> dict[str, str]:
    """COCO's tokenizer takes a line a caption; a caption with a line break of any kind would shift all that follow."""
    return {"caption": " ".join(text.split())}


def _close(process: object) -> None:
    for pipe in ("stdin", "stdout", "stderr"):
        getattr(process, pipe).close()
    process.wait()  # type: ignore[attr-defined]


def _grams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _bigrams(words: Words) -> int:
    return max(0, len(words) - 1)


def _common_subsequence(one: Words, other: Words) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        new = [0]
        for (left, above), theirs in zip(pairwise(row), other, strict=True):
            new.append(left + 1 if word == theirs else max(above, new[-1]))
        row = new
    return row[-1]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0
