"""mergekit's notation for an input, `base[@revision]+lora[@revision]`, taken apart; the disk decides what `+` means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import RecipeError
from ..links import as_path
from ..sources import LONGEST_REFERENCE


@dataclass(frozen=True)
class Reference:
    """Either `base` and `adapter`, or one thing that stands `alone`."""

    base: str | None = None
    adapter: str | None = None
    alone: str | None = None


def split(text: str, base: str | None, place: Path) -> Reference:
    """Take `base+lora` apart at the last `+` whose two sides make sense: each exists on disk, or has no further `+`.

    `base` is the recipe's base_model, where it is known; relative paths start from `place`.

    Raises: RecipeError where no `+` makes sense.
    """
    if len(text) > LONGEST_REFERENCE:
        raise RecipeError(f"a reference of {len(text)} characters; the longest may have {LONGEST_REFERENCE}")
    if "+" not in text or exists(text, place):
        return Reference(alone=text)
    if base is not None and text.startswith(f"{base}+") and _plausible(text[len(base) + 1 :], place):
        return Reference(base=base, adapter=text[len(base) + 1 :])
    cuts = [i for i, letter in enumerate(text) if letter == "+"][::-1]
    sides = [(text[:i], text[i + 1 :]) for i in cuts if text[:i] and text[i + 1 :]]
    for left, right in sides:
        if exists(left, place) and exists(right, place):
            return Reference(base=left, adapter=right)
    for left, right in sides:
        if _plausible(left, place) and _plausible(right, place):
            return Reference(base=left, adapter=right)
    raise RecipeError(
        f"{text!r} is not base+lora: one input is one base and one adapter",
        hint="give every adapter its own entry; a path that holds a + must exist",
    )


def exists(text: str, place: Path) -> bool:
    """Whether a reference is a path on disk."""
    try:
        return (place / as_path(text)).exists()
    except (OSError, ValueError):
        return False


def same_base(one: str, other: str | None, place: Path) -> bool:
    """Whether two references name the same base: the same text, or the same folder."""
    if other is None or one == other:
        return one == other
    if not (exists(one, place) and exists(other, place)):
        return False
    return (place / as_path(one)).samefile(place / as_path(other))


def holds_full_model(text: str, place: Path) -> bool:
    """Whether a folder on disk is a model and not an adapter; False for what is not on disk."""
    if not exists(text, place):
        return False
    folder = place / as_path(text)
    return (folder / "config.json").is_file() and not any(folder.glob("adapter_*"))


def _plausible(side: str, place: Path) -> bool:
    return bool(side) and ("+" not in side or exists(side, place))
