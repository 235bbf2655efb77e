"""The verdict: which adapters fight, what the merge does to them, in sentences that carry their number and its threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .advice import advice
from .case import Case, Level, bound, finding
from .records import AdapterFacts, Finding, MethodFacts, Pair, Site, Totals

MOST = 4
"""Findings of one rule that are told one by one; of more, the worst."""

_ORDER = ("problem", "warning", "advice", "good")


def verdict(
    adapters: Sequence[AdapterFacts], methods: Sequence[MethodFacts], totals: Totals, sites: Sequence[Site]
) -> list[Finding]:
    """All findings, the most urgent first."""
    case = Case(adapters, methods, totals, sites)
    found = [one for rule in RULES for one in _worst(list(rule(case)))] + list(advice(case))
    return sorted(found, key=lambda one: _ORDER.index(one.level))


def _worst(found: list[Finding]) -> list[Finding]:
    """The first findings of a rule, which come worst first; the last one tells how many more there are."""
    rest = len(found) - MOST
    if rest <= 0:
        return found
    last = found[MOST - 1]
    more = f"{last.sentence} The same holds for {rest} more."
    return [*found[: MOST - 1], last.model_copy(update={"sentence": more})]


# --- adapters ---------------------------------------------------------------------------------------------------------


def untrained(case: Case) -> Iterator[Finding]:
    """Adapters without any update."""
    for index, update in enumerate(case.totals.updates):
        if update is None or update.norm <= bound("untrained"):
            sentence = f"{case.name(index)} does nothing: the norm of its update is 0 (more than 0 wanted). Leave it out."
            yield finding("problem", "untrained", sentence, 0.0, f"totals.updates[{index}]", adapters=[index])


def norm_ratio(case: Case) -> Iterator[Finding]:
    """Whether one update drowns out another."""
    ratio = case.totals.norm_ratio
    norms = {index: update.norm for index, update in enumerate(case.totals.updates) if update and update.norm}
    if ratio is None or len(norms) < 2:
        return
    large, small = max(norms, key=norms.__getitem__), min(norms, key=norms.__getitem__)
    about = [large, small]
    path = "totals.norm_ratio"
    if ratio >= bound("norm_ratio"):
        sentence = (
            f"{case.name(large)} drowns out {case.name(small)}: its update is {ratio:.3g} times as large "
            f"(norms {norms[large]:.3g} and {norms[small]:.3g}; from {bound('norm_ratio'):g} on it matters). Balance them."
        )
        yield finding("problem", "norm_ratio", sentence, ratio, path, adapters=about)
        return
    sentence = (
        f"The updates are of similar size: the largest is {ratio:.3g} times the smallest (below {bound('norm_ratio'):g})."
    )
    yield finding("good", "balanced", sentence, ratio, path, threshold="norm_ratio", adapters=about)


# --- pairs ------------------------------------------------------------------------------------------------------------


def opposed(case: Case) -> Iterator[Finding]:
    """Pairs that work against each other."""
    for path, pair, cosine in sorted(case.pairs(), key=lambda each: each[2]):
        if cosine <= bound("opposed"):
            sentence = (
                f"{case.both(pair)} work against each other: cosine {cosine:.3g} (at or below {bound('opposed'):g}). "
                "A sum cancels what they disagree on."
            )
            yield _of_pair("problem", "opposed", sentence, cosine, f"{path}.cosine", pair)


def opposed_site(case: Case) -> Iterator[Finding]:
    """Pairs that agree as a whole and oppose each other somewhere: where most."""
    overall = {(pair.first, pair.second) for _, pair, cosine in case.pairs() if cosine <= bound("opposed")}
    worst: dict[tuple[int, int], tuple[float, int, int]] = {}
    for at, site in enumerate(case.sites):
        for place, pair in enumerate(site.pairs):
            key = pair.first, pair.second
            if pair.cosine is not None and key not in overall and pair.cosine <= bound("opposed_site"):
                worst[key] = min(worst.get(key, (1.0, 0, 0)), (pair.cosine, at, place))
    for cosine, at, place in sorted(worst.values()):
        pair = case.sites[at].pairs[place]
        sentence = (
            f"{case.both(pair)} work against each other at {case.sites[at].site}: cosine {cosine:.3g} there "
            f"(at or below {bound('opposed_site'):g}), though not as a whole."
        )
        yield _of_pair("warning", "opposed_site", sentence, cosine, f"sites[{at}].pairs[{place}].cosine", pair)


def signs(case: Case) -> Iterator[Finding]:
    """Pairs whose entries have opposite signs more often than by chance."""
    found = [(pair.sign_conflict, path, pair) for path, pair, _ in case.pairs() if pair.sign_conflict is not None]
    for conflict, path, pair in sorted(found, key=lambda each: -each[0]):
        if conflict >= bound("signs"):
            sentence = (
                f"{case.both(pair)} have opposite signs at {conflict:.1%} of their entries "
                f"(from {bound('signs'):.0%} on it is more than chance)."
            )
            yield _of_pair("warning", "signs", sentence, conflict, f"{path}.sign_conflict", pair)


def collide(case: Case) -> Iterator[Finding]:
    """Pairs that use the same directions for different things."""
    for overlap, path, side, pair in case.collisions():
        does = "write to the same output directions" if side == "left" else "read the same input directions"
        sentence = (
            f"{case.both(pair)} {does} for different things: overlap {overlap:.3g} (from {bound('collide'):g} on), "
            f"but cosine {pair.cosine:.2g} (below {bound('related'):g})."
        )
        yield _of_pair("warning", "collide", sentence, overlap, path, pair)


def alike(case: Case) -> Iterator[Finding]:
    """Pairs that point the same way, or are the same."""
    for path, pair, cosine in sorted(case.pairs(), key=lambda each: -each[2]):
        if cosine >= bound("same"):
            sentence = (
                f"{case.both(pair)} are nearly the same update: cosine {cosine:.3g} (from {bound('same'):g} on). "
                "Merging both counts it twice."
            )
            yield _of_pair("warning", "same", sentence, cosine, f"{path}.cosine", pair)
        elif cosine >= bound("related"):
            sentence = f"{case.both(pair)} point the same way: cosine {cosine:.3g} (from {bound('related'):g} on)."
            yield _of_pair("good", "related", sentence, cosine, f"{path}.cosine", pair)


def _of_pair(level: Level, rule: str, sentence: str, figure: float, path: str, pair: Pair) -> Finding:
    return finding(level, rule, sentence, figure, path, adapters=[pair.first, pair.second])


# --- the recipe's merge -----------------------------------------------------------------------------------------------


def kept(case: Case) -> Iterator[Finding]:
    """Whether the rank asked for is enough."""
    merge = case.totals.merges[0]
    name, path, limit = case.methods[0].label, "totals.merges[0].kept", bound("kept")
    if merge.kept >= limit:
        sentence = f"The output's rank keeps {merge.kept:.2%} of what {name} makes (at least {limit:.0%} wanted)."
        yield finding("good", "rank_enough", sentence, merge.kept, path, threshold="kept", methods=[0])
        return
    enough = next((k for k, share in enumerate(merge.energy, 1) if share >= limit), None)
    instead = (
        f"rank {enough} would keep {merge.energy[enough - 1]:.1%}" if enough else "no rank that was looked at keeps enough"
    )
    sentence = (
        f"The output's rank loses {1 - merge.kept:.1%} of what {name} makes: {merge.kept:.3g} is kept "
        f"(at least {limit:g} wanted); {instead}."
    )
    yield finding("problem", "rank_loss", sentence, merge.kept, path, threshold="kept", methods=[0])


def destroyed(case: Case) -> Iterator[Finding]:
    """Updates that the recipe's merge destroys."""
    for path, index, task in sorted(case.tasks(0), key=lambda each: -each[2].destroyed):
        if task.destroyed >= bound("destroyed"):
            sentence = (
                f"{case.methods[0].label} destroys {task.destroyed:.1%} of {case.name(index)} "
                f"(from {bound('destroyed'):.0%} on): it is there with {task.projection:.2g} times its size, "
                f"under crosstalk of {task.crosstalk:.2g} times its size."
            )
            yield finding("problem", "destroyed", sentence, task.destroyed, f"{path}.destroyed", adapters=[index], methods=[0])


def turned(case: Case) -> Iterator[Finding]:
    """Updates whose strongest direction the recipe's merge turns away."""
    sides = [
        (min(task.top.left, task.top.right), "left" if task.top.left <= task.top.right else "right", path, index)
        for path, index, task in case.tasks(0)
    ]
    for cosine, side, path, index in sorted(sides):
        if cosine <= bound("turned"):
            sentence = (
                f"{case.methods[0].label} turns the strongest direction of {case.name(index)} away: {side} |cosine| "
                f"{cosine:.3g}, mean over the sites (at or below {bound('turned'):g})."
            )
            yield finding("warning", "turned", sentence, cosine, f"{path}.top.{side}", adapters=[index], methods=[0])


def invented(case: Case) -> Iterator[Finding]:
    """A merged update that is mostly something no adapter asked for."""
    share = case.totals.merges[0].invented
    if share >= bound("invented"):
        sentence = (
            f"{share:.1%} of what {case.methods[0].label} makes lies outside of all updates (from {bound('invented'):.0%} on)."
        )
        yield finding("warning", "invented", sentence, share, "totals.merges[0].invented", methods=[0])


def shrunk(case: Case) -> Iterator[Finding]:
    """Updates that are much smaller in the merge than by themselves."""
    for path, index, task in sorted(case.tasks(0), key=lambda each: each[2].projection):
        if task.projection <= bound("shrunk"):
            sentence = (
                f"{case.name(index)} is in the merge with {task.projection:.3g} times its size (at or below "
                f"{bound('shrunk'):g}): too weak to act; raise gain or its weight."
            )
            yield finding("warning", "shrunk", sentence, task.projection, f"{path}.projection", adapters=[index], methods=[0])


def inflated(case: Case) -> Iterator[Finding]:
    """Updates that are much larger in the merge than by themselves."""
    for path, index, task in sorted(case.tasks(0), key=lambda each: -each[2].projection):
        if task.projection >= bound("inflated"):
            sentence = (
                f"{case.name(index)} is in the merge with {task.projection:.3g} times its size (from {bound('inflated'):g} "
                "on): it may overshoot; lower gain or its weight."
            )
            yield finding("warning", "inflated", sentence, task.projection, f"{path}.projection", adapters=[index], methods=[0])


RULES: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    untrained,
    opposed,
    norm_ratio,
    kept,
    destroyed,
    opposed_site,
    signs,
    collide,
    turned,
    invented,
    shrunk,
    inflated,
    alike,
)
