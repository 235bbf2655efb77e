"""The records an inspection consists of: sites, other tensors, adapters, all of them together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import RmkitError
from ..shards import TensorSpec
from ..sources import Source

if TYPE_CHECKING:
    from .numbers import NotFinite, SiteNumbers


@dataclass(frozen=True)
class SiteReport:
    """One site. `numbers` is None while weights are not read, and where they hold NaN or infinity."""

    name: str
    kind: str
    d_out: int
    d_in: int
    rank: int
    scale: float
    parameters: int
    experts: int = 1
    numbers: SiteNumbers | None = None


@dataclass(frozen=True)
class ExtraReport:
    """A tensor that is not a LoRA factor."""

    name: str
    kind: str
    spec: TensorSpec


@dataclass(frozen=True)
class Spread:
    """A figure over all sites: the least, the median, the largest."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The spread of some values, None for none."""
        found = list(values)
        return cls(min(found), statistics.median(found), max(found)) if found else None


@dataclass(frozen=True)
class Totals:
    """The figures of a whole adapter.

    norm: the Frobenius norm of all updates together, the root of the summed squares. singular: nonzero singular values of
    all sites, pooled. effective_rank and gauge: over the sites where they are defined. zero_sites: sites whose update is zero.
    """

    norm: float
    effective_rank: Spread | None
    singular: Spread | None
    zero_rows_a: int
    zero_columns_b: int
    dead: int
    zero_sites: int
    gauge: Spread | None

    @property
    def condition(self) -> float | None:
        """Largest over smallest nonzero singular value."""
        return self.singular.most / self.singular.least if self.singular else None


@dataclass(frozen=True)
class AdapterReport:
    """One adapter; with `error`, everything else is empty.

    alphas: None where the layout has none. targets: sites by kind of module. not_finite: stored tensors that hold NaN or
    infinity. totals: None while weights are not read.
    """

    reference: str
    label: str
    error: RmkitError | None = None
    source: Source | None = None
    layout: str = ""
    base: str | None = None
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] | None = None
    scales: tuple[float, ...] = ()
    targets: Mapping[str, int] = field(default_factory=dict[str, int])
    dtypes: tuple[str, ...] = ()
    sites: tuple[SiteReport, ...] = ()
    extras: tuple[ExtraReport, ...] = ()
    warnings: tuple[str, ...] = ()
    not_finite: Mapping[str, NotFinite] = field(default_factory=dict[str, "NotFinite"])
    totals: Totals | None = None

    @property
    def parameters(self) -> int:
        """Values of all LoRA factors."""
        return sum(site.parameters for site in self.sites)

    @property
    def usable(self) -> bool:
        """Whether a merge would accept it by itself."""
        return self.error is None and not self.not_finite


@dataclass(frozen=True)
class Inspection:
    """All adapters in the order asked for, and remarks about how they go together."""

    adapters: tuple[AdapterReport, ...]
    together: tuple[str, ...]
