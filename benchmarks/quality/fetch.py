"""Download the text tasks through `datasets` into the layout the benchmark reads; for those who have no folder of them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TRAIN_ROWS, TEST_ROWS = 3000, 1000


@dataclass(frozen=True)
class Origin:
    """Where a task comes from on the Hub, and one description for each class, in the order of its labels.

    `renumber` maps the data set's labels onto the descriptions where their order or number differs.
    """

    dataset: str
    text: str
    label: str
    descriptions: tuple[str, ...] = ()
    config: str | None = None
    train: str = "train"
    test: str = "test"
    renumber: Mapping[Any, int] | None = None


SENTIMENT = ("This review is negative: bad, disappointing.", "This review is positive: great, enjoyable.")
ORIGINS: dict[str, Origin] = {
    "snips_intent": Origin(
        "benayas/snips",
        "text",
        "category",
        (
            "Add a song or artist to a playlist.",
            "Book a table at a restaurant.",
            "Ask for the weather forecast.",
            "Play music by an artist or from an album.",
            "Rate a book with stars or points.",
            "Search for a creative work such as a book, game, album or show.",
            "Find the times a film is shown at a cinema.",
        ),
        renumber={
            name: place
            for place, name in enumerate(
                (
                    "AddToPlaylist",
                    "BookRestaurant",
                    "GetWeather",
                    "PlayMusic",
                    "RateBook",
                    "SearchCreativeWork",
                    "SearchScreeningEvent",
                )
            )
        },
    ),
    "trec6": Origin(
        "SetFit/TREC-QC",
        "text",
        "label_coarse_original",
        (
            "A question about an abbreviation.",
            "A question about a description or a reason.",
            "A question about an entity, a thing.",
            "A question about a person or group.",
            "A question about a place.",
            "A question about a number, date or quantity.",
        ),
        renumber={"ABBR": 0, "DESC": 1, "ENTY": 2, "HUM": 3, "LOC": 4, "NUM": 5},
    ),
    "sst2": Origin("SetFit/sst2", "text", "label", SENTIMENT),
    "ag_news": Origin(
        "fancyzhx/ag_news",
        "text",
        "label",
        ("World news and politics.", "News about sports.", "Business and economy news.", "News about science and technology."),
    ),
    "subj": Origin(
        "SetFit/subj",
        "text",
        "label",
        ("An objective sentence that tells the plot of a film.", "A subjective sentence that gives an opinion about a film."),
        renumber={0: 0, 1: 1},
    ),
    "sms_spam": Origin(
        "ucirvine/sms_spam",
        "sms",
        "label",
        ("An ordinary message between people.", "Spam: an unwanted advertisement, prize or offer."),
        test="train",
    ),
    "tweet_offensive": Origin(
        "cardiffnlp/tweet_eval", "text", "label", ("A tweet that is not offensive.", "An offensive tweet."), "offensive"
    ),
    "tweet_emotion": Origin(
        "cardiffnlp/tweet_eval",
        "text",
        "label",
        (
            "A tweet that expresses anger.",
            "A tweet that expresses joy.",
            "A tweet that expresses optimism.",
            "A tweet that expresses sadness.",
        ),
        "emotion",
    ),
    "cr": Origin("SetFit/SentEval-CR", "text", "label", SENTIMENT),
    "tweet_hate": Origin(
        "cardiffnlp/tweet_eval", "text", "label", ("A tweet without hate speech.", "A tweet with hate speech."), "hate"
    ),
    "banking77": Origin("PolyAI/banking77", "text", "label"),
    "clinc_domain10": Origin("DeepPavlov/clinc150", "utterance", "domain"),
}


def fetch(folder: Path) -> None:
    """Download every task that is not in the folder."""
    from datasets import load_dataset

    for name, origin in ORIGINS.items():
        if (folder / name / "train.jsonl").is_file():
            continue
        loaded = {part: load_dataset(origin.dataset, origin.config, split=part) for part in {origin.train, origin.test}}
        write_task(
            folder / name, origin, list(loaded[origin.train]), list(loaded[origin.test]), _names(loaded[origin.train], origin)
        )
        print(f"{name}: from {origin.dataset}")


def write_task(
    folder: Path, origin: Origin, train: Sequence[Mapping[str, Any]], test: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> None:
    """Sample both parts with seed 0; no text of the test part stays in the train part.

    names: the class names, for tasks without descriptions of their own.
    """
    descriptions = origin.descriptions or tuple(name.replace("_", " ").capitalize() + "." for name in names)
    draws = random.Random(0)
    rows = [_rows(part, origin, names) for part in (train, test)]
    if origin.train == origin.test:
        draws.shuffle(rows[0])
        cut = len(rows[0]) // 5
        rows = [rows[0][cut:], rows[0][:cut]]
    tested = draws.sample(rows[1], min(TEST_ROWS, len(rows[1])))
    texts = {text for text, _ in tested}
    fresh = list(dict.fromkeys(row for row in rows[0] if row[0] not in texts))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.json").write_text(json.dumps(descriptions))
    _write(folder / "test.jsonl", tested)
    _write(folder / "train.jsonl", draws.sample(fresh, min(TRAIN_ROWS, len(fresh))))


def _rows(part: Sequence[Mapping[str, Any]], origin: Origin, names: Sequence[str]) -> list[tuple[str, int]]:
    numbers = origin.renumber or {name: place for place, name in enumerate(names)}
    return [
        (" ".join(str(row[origin.text]).split()), label if isinstance(label, int) and not origin.renumber else numbers[label])
        for row in part
        for label in [row[origin.label]]
    ]


def _names(part: Any, origin: Origin) -> list[str]:
    known = getattr(part.features[origin.label], "names", None)
    return list(known) if known else sorted({str(value) for value in part[origin.label]})


def _write(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), encoding="utf-8")
