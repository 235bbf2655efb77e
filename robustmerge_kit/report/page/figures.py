"""The figures that the heat maps and the table of sites can show: one line each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from ..analysis.records import Merge, Pair, Site, TaskInMerge, Update

Of = TypeVar("Of")

Scale = Literal["signed", "chance", "good", "bad", "size", "ratio", "angle"]
"""How a figure is coloured and written.

signed: about 0. chance: a share about 0.5. good, bad: shares. size: from 0 upwards. ratio: about 1, in octaves.
angle: degrees, small ones dark.
"""


@dataclass(frozen=True)
class Figure(Generic[Of]):
    """One figure. `worst` says which of several values is the one to worry about."""

    key: str
    title: str
    meaning: str
    scale: Scale
    worst: Literal["least", "most"]
    of: Callable[[Of], float | None]


PAIR: tuple[Figure[Pair], ...] = (
    Figure(
        "cosine", "cosine", "of the two updates: 1 the same, 0 unrelated, −1 opposite", "signed", "least", lambda p: p.cosine
    ),
    Figure(
        "sign_conflict",
        "sign conflict",
        "share of entries at which the two have opposite signs; 0.5 for unrelated ones",
        "chance",
        "most",
        lambda p: p.sign_conflict,
    ),
    Figure(
        "shared_first",
        "shared, first",
        "share of the first one's energy that lies in the directions of the second",
        "bad",
        "most",
        lambda p: p.shared_first,
    ),
    Figure(
        "shared_second",
        "shared, second",
        "share of the second one's energy that lies in the directions of the first",
        "bad",
        "most",
        lambda p: p.shared_second,
    ),
    Figure(
        "left_overlap",
        "overlap of outputs",
        "mean squared cosine of the angles between their left singular subspaces",
        "bad",
        "most",
        lambda p: p.left and p.left.overlap,
    ),
    Figure(
        "right_overlap",
        "overlap of inputs",
        "mean squared cosine of the angles between their right singular subspaces",
        "bad",
        "most",
        lambda p: p.right and p.right.overlap,
    ),
    Figure(
        "left_angle",
        "least angle, outputs",
        "smallest principal angle of the left singular subspaces, in degrees",
        "angle",
        "least",
        lambda p: p.left and p.left.smallest,
    ),
    Figure(
        "right_angle",
        "least angle, inputs",
        "smallest principal angle of the right singular subspaces, in degrees",
        "angle",
        "least",
        lambda p: p.right and p.right.smallest,
    ),
    Figure("norm_ratio", "norm ratio", "norm of the first over norm of the second", "ratio", "most", lambda p: p.norm_ratio),
)

UPDATE: tuple[Figure[Update], ...] = (
    Figure("norm", "norm", "Frobenius norm of the update", "size", "most", lambda u: u.norm),
    Figure("top", "largest singular value", "of the update", "size", "most", lambda u: next(iter(u.spectrum), None)),
    Figure(
        "effective_rank",
        "effective rank",
        "exp of the entropy of the singular values",
        "size",
        "least",
        lambda u: u.effective_rank,
    ),
    Figure("rank", "rank", "singular values that are not zero", "size", "least", lambda u: float(u.rank)),
    Figure("a_rms", "rms of A", "root of the mean square of the values of A", "size", "most", lambda u: u.a.rms),
    Figure("b_rms", "rms of B", "root of the mean square of the values of B", "size", "most", lambda u: u.b.rms),
    Figure(
        "a_kurtosis",
        "kurtosis of A",
        "excess kurtosis of its values: −1.2 uniform, 0 Gaussian",
        "signed",
        "most",
        lambda u: u.a.kurtosis,
    ),
    Figure(
        "b_kurtosis",
        "kurtosis of B",
        "excess kurtosis of its values: −1.2 uniform, 0 Gaussian",
        "signed",
        "most",
        lambda u: u.b.kurtosis,
    ),
)

MERGE: tuple[Figure[Merge], ...] = (
    Figure(
        "kept",
        "energy kept",
        "share of the squared norm that the cut to the output's rank keeps",
        "good",
        "least",
        lambda m: m.kept,
    ),
    Figure("norm", "norm", "Frobenius norm of the merged update", "size", "most", lambda m: m.norm),
    Figure("rank", "rank", "directions of the merged update that are not zero", "size", "most", lambda m: m.rank),
    Figure(
        "invented",
        "invented",
        "share of its energy outside of the directions of all adapters",
        "bad",
        "most",
        lambda m: m.invented,
    ),
    Figure("known", "seen", "share of its energy that the analysis saw", "good", "least", lambda m: m.known),
)

TASK: tuple[Figure[TaskInMerge], ...] = (
    Figure("destroyed", "destroyed", "share of the update that no rescaling gives back", "bad", "most", lambda t: t.destroyed),
    Figure("cosine", "cosine", "of the merged update and the adapter's", "signed", "least", lambda t: t.cosine),
    Figure(
        "projection",
        "projection",
        "1: the update is there in full size; 0: gone; negative: reversed",
        "signed",
        "least",
        lambda t: t.projection,
    ),
    Figure(
        "crosstalk",
        "crosstalk",
        "what others add in the adapter's own directions, in units of its norm",
        "bad",
        "most",
        lambda t: t.crosstalk,
    ),
    Figure(
        "top_left",
        "top, output",
        "|cosine| of its largest output direction with the one it is matched to",
        "good",
        "least",
        lambda t: t.top.left,
    ),
    Figure(
        "top_right",
        "top, input",
        "|cosine| of its largest input direction with the one it is matched to",
        "good",
        "least",
        lambda t: t.top.right,
    ),
    Figure(
        "top_ratio",
        "top, ratio",
        "merged over original singular value, largest direction",
        "ratio",
        "least",
        lambda t: t.top.ratio,
    ),
    Figure(
        "rest_left",
        "rest, output",
        "mean |cosine| of its other output directions",
        "good",
        "least",
        lambda t: t.rest and t.rest.left,
    ),
    Figure(
        "rest_right",
        "rest, input",
        "mean |cosine| of its other input directions",
        "good",
        "least",
        lambda t: t.rest and t.rest.right,
    ),
    Figure(
        "rest_ratio",
        "rest, ratio",
        "mean of merged over original singular value, other directions",
        "ratio",
        "least",
        lambda t: t.rest and t.rest.ratio,
    ),
)

SITE: tuple[Figure[Site], ...] = (
    Figure(
        "cancelled",
        "cancelled",
        "share of the magnitude of all entries that a plain sum of the updates cancels",
        "bad",
        "most",
        lambda s: s.signs.cancelled,
    ),
    Figure("norm_ratio", "norm ratio", "largest norm of an update over the smallest", "ratio", "most", lambda s: s.norm_ratio),
)
