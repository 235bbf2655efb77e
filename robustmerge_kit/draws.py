"""Random numbers that depend on what they are for and on nothing else: not on order, threads, tiles or device."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

TILE_ROWS = 128
"""Rows that share one generator; a row's numbers never depend on how many rows are asked for."""

_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class KeyedDraws:
    """Uniforms keyed by (seed, site, adapter, purpose, tile of rows); implements `method.Draws`.

    sites: one name, or one name per element of the leading batch axes. identities: one per adapter of the stack.
    row: the row of the object at which the tensors asked for begin. In a survey of many sites `origin` counts the entries
    before this object, and `places` says which of all adapters are in the stack. `part` tells apart several objects of a site.
    """

    seed: int
    sites: tuple[str, ...]
    identities: tuple[str, ...]
    row: int = 0
    origin: int = 0
    places: tuple[int, ...] | None = None
    part: str = ""

    @classmethod
    def of(cls, seed: int, site: str | Sequence[str], identities: Sequence[str]) -> KeyedDraws:
        """Draws for one site, or for a batch of sites of one shape."""
        return cls(seed, (site,) if isinstance(site, str) else tuple(site), tuple(identities))

    def at_row(self, row: int) -> KeyedDraws:
        """The same numbers, for tensors that begin at `row` of the object."""
        return replace(self, row=row)

    def for_part(self, part: str) -> KeyedDraws:
        """Other numbers, for one of several objects of the site."""
        return replace(self, part=part)

    def among(self, origin: int, places: Sequence[int]) -> KeyedDraws:
        """The same numbers, for an object that follows `origin` other entries in a survey of many sites."""
        return replace(self, origin=origin, places=tuple(places))

    def each(self) -> tuple[KeyedDraws, ...]:
        """The draws of every site of a batch by itself."""
        return tuple(replace(self, sites=(site,)) for site in self.sites)

    def own(self, stats: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """Of numbers per adapter of a whole survey, those of the adapters in the stack.

        Shapes: each (..., all adapters) -> (..., n).
        """
        if self.places is None:
            return stats
        return {name: value[..., list(self.places)] for name, value in stats.items()}

    def first_entry(self, cols: int) -> int:
        """Flat index, counted as the survey counted, of the first entry of a tensor with that many columns."""
        return self.origin + self.row * cols

    def uniform(self, adapter: int | None, purpose: str, like: torch.Tensor) -> torch.Tensor:
        """Uniforms in [0, 1), float32, of the shape and on the device of `like`.

        adapter: position in the stack; None: one key for the whole stack, the same for any order of its adapters.

        Shapes: like (..., rows, cols) or (cols,); the leading axes count the sites.
        Raises: ValueError when the leading axes do not count the sites.
        """
        rows, cols = (1, *like.shape)[-2:]
        if like.numel() != len(self.sites) * rows * cols:
            raise ValueError(f"{tuple(like.shape)} does not hold {len(self.sites)} sites")
        who = _SEPARATOR.join(sorted(self.identities)) if adapter is None else self.identities[adapter]
        values = np.empty((len(self.sites), rows, cols), np.float32)
        for site, out in zip(self.sites, values, strict=True):
            self._fill(out, (str(self.seed), site, who, purpose + self.part))
        return torch.from_numpy(values).reshape(like.shape).to(like.device)

    def _fill(self, out: np.ndarray[tuple[int, ...], np.dtype[np.float32]], key: tuple[str, ...]) -> None:
        rows, cols = out.shape
        start = 0
        while start < rows:
            tile, skip = divmod(self.row + start, TILE_ROWS)
            stop = min(rows, start + TILE_ROWS - skip)
            _generator((*key, str(tile)), skip * cols).random(out=out[start:stop], dtype=np.float32)
            start = stop


def _generator(key: tuple[str, ...], skip: int) -> np.random.Generator:
    """The generator of a key, after `skip` float32 numbers; one step of Philox yields eight of them."""
    digest = hashlib.sha256(_SEPARATOR.join(key).encode()).digest()
    philox = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    philox.advance(skip // 8)
    generator = np.random.Generator(philox)
    generator.random(skip % 8, dtype=np.float32)
    return generator
