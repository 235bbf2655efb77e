"""Analyses to render: made-up figures of any size, without a merge. Figures are plausible one by one, not together.

`made_up()` is a report of 3 adapters, 2 methods, 4 layers x 3 modules and a module outside the layers; all optional figures
are absent somewhere. `made_up(layers=32, adapters=8, modules=MODULES)` has the size of LLaVA-1.5-7B.
"""

import itertools
import math
import random
from collections.abc import Sequence

from robustmerge_kit.report.analysis.records import (
    AdapterFacts,
    Analysis,
    Direction,
    Exactness,
    FactorValues,
    Finding,
    Merge,
    MethodFacts,
    Pair,
    Signs,
    Site,
    Subspaces,
    TaskInMerge,
    Threshold,
    Totals,
    Update,
)

MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
BINS = tuple(-4 + 8 * i / 64 for i in range(65))


def made_up(
    layers: int = 4,
    adapters: int = 3,
    modules: Sequence[str] = MODULES[:3],
    methods: Sequence[str] = ("robustmerge", "linear"),
    rank: int = 8,
    seed: int = 0,
) -> Analysis:
    """A report of made-up figures; the last adapter lacks the module outside the layers."""
    draw = random.Random(seed)
    places = [("model.layers", layer, module) for layer in range(layers) for module in modules]
    sites = [_site(draw, *place, adapters, len(methods), rank) for place in places]
    sites.append(_site(draw, "", None, "lm_head", adapters, len(methods), rank, lacking=adapters - 1))
    pairs = tuple(_pair(draw, i, j, rank) for i in range(adapters) for j in range(i + 1, adapters))
    labels = [f"task-{chr(97 + i)}" for i in range(adapters)]
    worst = min(pairs, key=lambda pair: pair.cosine or 0.0, default=None)
    verdict = [
        Finding(
            rule="rank_loss",
            level="problem",
            sentence="The rank asked for loses 23.1 % of the merged update (threshold 10 %): raise output.rank.",
            figure=0.231,
            threshold="rank_loss",
            path="totals.merges[0].kept",
            methods=(0,),
        )
    ]
    if worst is not None and worst.cosine is not None:
        verdict.append(
            Finding(
                rule="conflict",
                level="warning",
                sentence=f"{labels[worst.first]}, {labels[worst.second]}: cosine {worst.cosine:.2f} (at most -0.1).",
                figure=worst.cosine,
                threshold="conflict",
                path=f"totals.pairs[{pairs.index(worst)}].cosine",
                adapters=(worst.first, worst.second),
            )
        )
    verdict += [
        Finding(
            rule="try_sparse",
            level="advice",
            sentence="Worth trying: ties; 53 % of the entries of task-a and task-b differ in sign (at least 52 %).",
            figure=0.53,
            threshold="sign_conflict",
            path="totals.pairs[0].sign_conflict",
        ),
        Finding(
            rule="balanced",
            level="good",
            sentence="The updates are of similar size: the largest is 1.4 times the smallest (below 3).",
            figure=1.4,
            threshold="norm_ratio",
            path="totals.norm_ratio",
        ),
    ]
    return Analysis(
        rmkit="0.0.0",
        recipe="made-up",
        pruning={"density": 0.2, "clamp": True, "clamp_quantile": 0.8},
        adapters=tuple(
            AdapterFacts(
                label=label,
                reference=f"adapters/{label}",
                base="org/tiny <base>",
                sites=len(sites),
                ranks=(rank,),
                weights=(1.0,),
            )
            for label in labels
        ),
        methods=tuple(
            MethodFacts(label=name, method=name, space=None, parameters={"gain": 1.0} if i else {}, mixed=False)
            for i, name in enumerate(methods)
        ),
        verdict=tuple(verdict),
        thresholds={
            "conflict": Threshold(value=-0.1, meaning="cosine of two updates at or below which they oppose each other"),
            "rank_loss": Threshold(value=0.1, meaning="share of the merged update that a cut may lose"),
            "sign_conflict": Threshold(value=0.52, meaning="share of entries of opposite sign from which two updates fight"),
            "norm_ratio": Threshold(value=3.0, meaning="largest norm over smallest from which an update is drowned out"),
        },
        exactness=(
            Exactness(figures="pairs, spectra", how="exact, from the small cores in float64", error=None),
            Exactness(figures="sign_conflict", how="256 evenly spaced rows of every site", error=0.002),
        ),
        notes=("a note",),
        totals=Totals(
            bins=BINS,
            norm_ratio=1.4,
            cancelled=0.31,
            updates=tuple(_update(draw, rank, histogram=True) for _ in range(adapters)),
            pairs=tuple(
                pair.model_copy(update={"angles_left": _angles(draw, rank), "angles_right": _angles(draw, rank)})
                for pair in pairs
            ),
            merges=tuple(_merge(draw, adapters, rank) for _ in methods),
        ),
        sites=tuple(sites),
    )


def _site(
    draw: random.Random,
    stack: str,
    layer: int | None,
    module: str,
    adapters: int,
    methods: int,
    rank: int,
    lacking: int | None = None,
) -> Site:
    there = [i for i in range(adapters) if i != lacking]
    return Site(
        site=f"{stack}.{layer}.{module}" if stack else module,
        stack=stack,
        layer=layer,
        module=module,
        d_out=4096,
        d_in=4096,
        norm_ratio=1 + draw.random(),
        updates=tuple(_update(draw, rank) if i in there else None for i in range(adapters)),
        pairs=tuple(_pair(draw, i, j, rank) for i in there for j in there if i < j),
        signs=Signs(rows=256, cancelled=draw.random(), error=0.01 * draw.random()),
        merges=tuple(_merge(draw, adapters, rank, lacking) for _ in range(methods)),
    )


def _subspaces(draw: random.Random) -> Subspaces:
    angles = sorted(90 * draw.random() for _ in range(3))
    return Subspaces(overlap=draw.random(), smallest=angles[0], median=angles[1], largest=angles[2])


def _angles(draw: random.Random, rank: int) -> tuple[float, ...]:
    return tuple(sorted(90 * draw.random() for _ in range(rank)))


def _pair(draw: random.Random, first: int, second: int, rank: int) -> Pair:
    return Pair(
        first=first,
        second=second,
        cosine=2 * draw.random() - 1,
        norm_ratio=math.exp(draw.gauss(0, 0.5)),
        left=_subspaces(draw),
        right=_subspaces(draw),
        shared_first=draw.random(),
        shared_second=draw.random(),
        sign_conflict=draw.random(),
    )


def _spectrum(draw: random.Random, rank: int) -> tuple[float, ...]:
    return tuple(sorted((math.exp(draw.gauss(0, 1)) for _ in range(rank)), reverse=True))


def _values(draw: random.Random, histogram: bool) -> FactorValues:
    weights = [math.exp(-(((low + high) / 2) ** 2) / 2) for low, high in itertools.pairwise(BINS)]
    shares = tuple(weight / sum(weights) for weight in weights) if histogram else ()
    return FactorValues(rms=0.02 * draw.random(), largest=4 + draw.random(), kurtosis=draw.gauss(0, 1), histogram=shares)


def _update(draw: random.Random, rank: int, histogram: bool = False) -> Update:
    spectrum = _spectrum(draw, rank)
    return Update(
        rank=rank,
        norm=math.hypot(*spectrum),
        effective_rank=1 + draw.random() * (rank - 1),
        spectrum=spectrum,
        pruned=tuple(0.5 * s for s in spectrum),
        scaled=tuple(1.1 * s for s in spectrum),
        a=_values(draw, histogram),
        b=_values(draw, histogram),
    )


def _merge(draw: random.Random, adapters: int, rank: int, lacking: int | None = None) -> Merge:
    spectrum = _spectrum(draw, rank)
    squares = [s * s for s in spectrum]
    return Merge(
        rank=rank,
        norm=math.hypot(*spectrum),
        kept=1.0,
        known=1.0,
        invented=draw.random(),
        spectrum=spectrum,
        energy=tuple(sum(squares[: k + 1]) / sum(squares) for k in range(rank)),
        tasks=tuple(None if i == lacking else _task(draw, rank) for i in range(adapters)),
    )


def _task(draw: random.Random, rank: int) -> TaskInMerge:
    return TaskInMerge(
        cosine=2 * draw.random() - 1,
        projection=draw.random(),
        crosstalk=draw.random(),
        destroyed=draw.random(),
        top=Direction(left=draw.random(), right=draw.random(), ratio=2 * draw.random()),
        rest=Direction(left=draw.random(), right=draw.random(), ratio=2 * draw.random()) if rank > 1 else None,
    )
