"""Exact cores kept between merges of the same factors, for what merges them again and again with other settings."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import replace

from .factors import Core, FactorStack, core, joined, unweighted_core, weighted


class Cores:
    """Cores by what their factors are called, as long as they fit into `limit` bytes; for several threads at a time.

    A core is kept without coefficients and without the long vectors of its bases: the factors, which a merge has read anyway,
    are those vectors. That is some hundred kilobytes a site, and gives `factors.core` again, bit for bit. When the limit is
    reached no more is kept and nothing given up: merges meet their sites in one order, so what was met longest ago is next.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: dict[Hashable, Core] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return self._bytes

    def core(self, key: Hashable, stack: FactorStack) -> Core:
        """The exact small core of a stack. key: the same for the same factors on one device, whatever their coefficients."""
        with self._lock:
            known = self._kept.get(key)
            full = self._bytes >= self.limit
        if known is not None:
            a, b = joined(stack)
            return weighted(replace(known, q_b=known.q_b.on(b), q_a=known.q_a.on(a.mT)), stack)
        if full:
            return core(stack)
        made = unweighted_core(stack)
        self._keep(key, replace(made, q_b=made.q_b.without_vectors(), q_a=made.q_a.without_vectors()))
        return weighted(made, stack)

    def _keep(self, key: Hashable, small: Core) -> None:
        nbytes = sum(x.nbytes for x in (small.q_b, small.q_a, small.r_b, small.r_a))
        with self._lock:
            if key not in self._kept and self._bytes + nbytes <= self.limit:
                self._kept[key] = small
                self._bytes += nbytes
