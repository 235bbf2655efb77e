"""From two references to their comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...adapters import Adapter
from ...base_folders import PIPELINE, STEMS, weight_names
from ...checkpoint import Checkpoint, open_checkpoint
from ...errors import InputError, PlanError
from ...folders import CONFIG
from ...sources import Source, resolve
from ..inspect import name_apart
from ..lenient import read_leniently
from .records import Comparison, Observe


def diff(
    a: str,
    b: str,
    place: Path,
    *,
    ranks: bool = False,
    workers: int | None = None,
    planned: Callable[[int], None] = lambda count: None,
    observe: Observe = lambda name, count, nbytes: None,
) -> Comparison:
    """Compare two adapters, or two models, local ones relative to `place`; A is what relative errors refer to.

    ranks: of models, whose matrices are not factored, count the directions that separate two of them, too; adapters always
    have ranks. `planned` is told how many sites and tensors there are.

    Raises: InputError for what cannot be read or does not belong together, PlanError for an adapter against a model.
    """
    labels = name_apart([a, b])
    left, right = (_open(reference, label, place) for reference, label in zip((a, b), labels, strict=True))
    match left, right:
        case Adapter(), Adapter():
            from .adapters import compare_adapters

            return compare_adapters(left, right, workers=workers, planned=planned, observe=observe)
        case Checkpoint(), Checkpoint():
            from .models import compare_models

            names = (labels[0], labels[1])
            return compare_models(left, right, names, ranks=ranks, workers=workers, planned=planned, observe=observe)
        case _:
            adapter, model = (a, b) if isinstance(left, Adapter) else (b, a)
            raise PlanError(
                f"{adapter} is an adapter and {model} a model, and these cannot be compared",
                hint="fold the adapter into its base first, then compare the two models",
            )


def _open(reference: str, label: str, place: Path) -> Adapter | Checkpoint:
    source = resolve(reference, place)
    if _is_model(source):
        return open_checkpoint(source)
    adapter, remarks = read_leniently(source, label)
    return replace(adapter, notes=(*remarks, *adapter.notes))


def _is_model(source: Source) -> bool:
    """Told by names of files alone; what is neither a model nor an adapter is left to the reader of adapters to explain."""
    if source.file is not None:
        return source.file.name.partition(".")[0].partition("-")[0] in STEMS
    try:
        names = [child.name for child in source.folder.iterdir()]
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", where=source.reference) from error
    return CONFIG not in names and (PIPELINE in names or weight_names(names) is not None)
