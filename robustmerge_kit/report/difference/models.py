"""Two models, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable

from ...checkpoint import Checkpoint
from .dense import compare_tensors, pair_up
from .records import Comparison, Observe, Operand, largest_first


def compare_models(
    a: Checkpoint,
    b: Checkpoint,
    labels: tuple[str, str],
    *,
    ranks: bool = False,
    workers: int | None = None,
    planned: Callable[[int], None] = lambda count: None,
    observe: Observe = lambda name, count, nbytes: None,
) -> Comparison:
    """Compare all tensors of two checkpoints by their names, whatever their files and dtypes.

    ranks: count the directions that separate two matrices, which takes three more passes over those that differ.

    Raises: InputError when a file cannot be read or changes meanwhile.
    """
    tensors = pair_up(a.tensors, b.tensors)
    planned(len(tensors))
    operands = [
        Operand(each.source.reference, label, f"{len(each.files)} {'file' if len(each.files) == 1 else 'files'}")
        for each, label in zip((a, b), labels, strict=True)
    ]
    return Comparison(
        kind="models",
        a=operands[0],
        b=operands[1],
        sites=(),
        tensors=largest_first(compare_tensors(tensors, workers, observe, ranks)),
        notes=tuple(f"{label}: {note}" for each, label in zip((a, b), labels, strict=True) for note in each.notes),
    )
