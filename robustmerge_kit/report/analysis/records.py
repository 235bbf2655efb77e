"""Every figure of an analysis. `report.json` is these records as JSON; docs/analyze.md explains each of them.

Adapters, methods and directions are counted from 0, in the order of `Analysis.adapters` and `Analysis.methods`; method 0 is the
recipe's own. None stands where a figure has no meaning: an adapter that does not have the site, a cosine with a zero update.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, PlainSerializer

FORMAT = "rmkit-analysis"
VERSION = 1

Figure = Annotated[float, PlainSerializer(lambda value: float(f"{value:.6g}"), return_type=float)]
"""A number; six of its digits go into the JSON."""


class Record(BaseModel):
    """Closed and immutable; NaN and infinity are no figures."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# --- who takes part ---------------------------------------------------------------------------------------------------


class AdapterFacts(Record):
    """An adapter. `label` is its name in every sentence, `reference` what the recipe says; `sites` is how many it has."""

    label: str
    reference: str
    base: str | None
    sites: int
    ranks: tuple[int, ...]
    weights: tuple[Figure, ...]


class MethodFacts(Record):
    """A way to merge. `label` is its column's head; `mixed` where the recipe's overrides use other methods at some sites."""

    label: str
    method: str
    space: str | None
    parameters: dict[str, Any]
    mixed: bool = False


# --- two updates ------------------------------------------------------------------------------------------------------


class Subspaces(Record):
    """Principal angles in degrees between the singular directions of two updates on one side.

    overlap: mean of the squared cosines of all angles: 1 the same subspace, 0 orthogonal ones.
    """

    overlap: Figure
    smallest: Figure
    median: Figure
    largest: Figure


class Pair(Record):
    """Two updates D_first and D_second, first < second.

    cosine: <D_first, D_second> / (||D_first|| ||D_second||). norm_ratio: ||D_first|| / ||D_second||.
    left, right: subspaces of the outputs and of the inputs.
    shared_first: share of ||D_first||^2 that lies in the subspaces of D_second on both sides; shared_second: the reverse.
    sign_conflict: share of the entries, among those where neither is 0, at which the two have opposite signs.
    angles_left, angles_right: in the totals, the k-th smallest angle averaged over the sites; empty at a site.
    """

    first: int
    second: int
    cosine: Figure | None
    norm_ratio: Figure | None
    left: Subspaces | None
    right: Subspaces | None
    shared_first: Figure | None
    shared_second: Figure | None
    sign_conflict: Figure | None
    angles_left: tuple[Figure, ...] = ()
    angles_right: tuple[Figure, ...] = ()


# --- one update -------------------------------------------------------------------------------------------------------


class FactorValues(Record):
    """The values of a factor. rms: root of their mean square; largest: largest magnitude / rms; excess kurtosis: -1.2 for
    uniform, 0 for Gaussian values. histogram: in the totals, share of values per bin of `Totals.bins`, in units of the rms of
    the site; empty at a site.
    """

    rms: Figure
    largest: Figure | None
    kurtosis: Figure | None
    histogram: tuple[Figure, ...] = ()


class Update(Record):
    """One adapter's update D = weight * scale * B A.

    norm: Frobenius norm; in the totals, of all sites together. effective_rank: exp of the entropy of the singular values; in
    the totals the mean over the sites. spectrum: singular values; pruned: those of the update after RobustMerge's pruning
    of A and B; scaled: with its complementary scales as well. In the totals each is the mean over the sites of the k-th value.
    """

    rank: int
    norm: Figure
    effective_rank: Figure
    spectrum: tuple[Figure, ...]
    pruned: tuple[Figure, ...]
    scaled: tuple[Figure, ...]
    a: FactorValues
    b: FactorValues


# --- what a method does to the updates --------------------------------------------------------------------------------


class Direction(Record):
    """How singular directions of an update are found again in the merged update, matched by assignment.

    left, right: |cosine| of the matched left and right singular vectors. ratio: merged singular value / original one.
    """

    left: Figure
    right: Figure
    ratio: Figure


class TaskInMerge(Record):
    """What a merged update D does to an update D_t.

    cosine: of D and D_t. projection: <D, D_t> / ||D_t||^2. crosstalk: ||P - projection D_t|| / ||D_t||, where P is D seen
    through the subspaces of D_t on both sides. destroyed: share of ||D_t||^2 that no rescaling of P gives back,
    crosstalk^2 / (projection^2 + crosstalk^2), and 1 where the projection is not positive.
    top: the direction of the largest singular value. rest: the mean of all others, None where there is none.
    """

    cosine: Figure | None
    projection: Figure
    crosstalk: Figure
    destroyed: Figure
    top: Direction
    rest: Direction | None


class Merge(Record):
    """A merged update D at the rank it would be written with.

    rank: directions that are not zero; in the totals the mean over the sites. norm: Frobenius norm. kept: share of the squared
    norm that the cut to the output's rank keeps. known: share of it that the analysis saw, see `exactness` of the report.
    invented: share of ||D||^2 outside of the joint subspaces of all updates.
    spectrum: singular values before the cut; in the totals the mean over the sites. energy: share of the squared norm kept by
    the first 1, 2, .. directions of every site. tasks: one per adapter.
    """

    rank: Figure
    norm: Figure
    kept: Figure
    known: Figure
    invented: Figure
    spectrum: tuple[Figure, ...]
    energy: tuple[Figure, ...]
    tasks: tuple[TaskInMerge | None, ...]


# --- sites and totals -------------------------------------------------------------------------------------------------


class Signs(Record):
    """What the entries of the updates at a site say, from `rows` of its d_out rows; exact when rows = d_out.

    cancelled: 1 - sum |sum_t D_t| / sum sum_t |D_t|, the share of magnitude that a plain sum cancels.
    error: standard error of a sign conflict that comes of looking at some rows only, the largest of all pairs.
    """

    rows: int
    cancelled: Figure | None
    error: Figure


class Site(Record):
    """A site. `layer` is its number in the stack of layers `stack`, `module` the rest of its name.

    updates: one per adapter, None where its update is zero or absent. merges: one per method. pairs: only of updates that are
    there. norm_ratio: largest norm / smallest.
    """

    site: str
    stack: str
    layer: int | None
    module: str
    d_out: int
    d_in: int
    norm_ratio: Figure | None
    updates: tuple[Update | None, ...]
    pairs: tuple[Pair, ...]
    signs: Signs
    merges: tuple[Merge, ...]


class Totals(Record):
    """All sites together: cosines, norms, projections and energies as if all sites were one long update; overlaps, angles and
    directions as means over the sites. bins: edges of the histograms of factor values.
    """

    bins: tuple[Figure, ...]
    norm_ratio: Figure | None
    cancelled: Figure | None
    updates: tuple[Update | None, ...]
    pairs: tuple[Pair, ...]
    merges: tuple[Merge, ...]


# --- the verdict ------------------------------------------------------------------------------------------------------


class Threshold(Record):
    """A number that decides whether a sentence is said, and what it is compared with."""

    value: Figure
    meaning: str


class Finding(Record):
    """A sentence of the verdict. `figure` is the number it rests on and `path` where that stands in this report.

    rule: which rule speaks. threshold: its name in `Analysis.thresholds`. level: `problem` wants action, `warning` attention,
    `advice` is worth a try, `good` is all right. adapters, methods: whom it is about.
    """

    rule: str
    level: Literal["problem", "warning", "advice", "good"]
    sentence: str
    figure: Figure
    threshold: str
    path: str
    adapters: tuple[int, ...] = ()
    methods: tuple[int, ...] = ()


class Exactness(Record):
    """How exact a group of figures is. error: bound or standard error, None where it is rounding alone."""

    figures: str
    how: str
    error: Figure | None


class Analysis(Record):
    """A whole analysis; the content of `report.json`."""

    format: Literal["rmkit-analysis"] = FORMAT
    version: Literal[1] = VERSION
    rmkit: str
    recipe: str
    pruning: dict[str, Any]
    adapters: tuple[AdapterFacts, ...]
    methods: tuple[MethodFacts, ...]
    verdict: tuple[Finding, ...]
    thresholds: dict[str, Threshold]
    exactness: tuple[Exactness, ...]
    notes: tuple[str, ...]
    totals: Totals
    sites: tuple[Site, ...]
