"""Which methods are worth trying for these adapters, and why; what has been tried already is judged by its own figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean, median

from .case import Case, bound, finding
from .records import Finding


def advice(case: Case) -> Iterator[Finding]:
    """At most one finding per reason."""
    for reason in REASONS:
        yield from reason(case)


def try_sum(case: Case) -> Iterator[Finding]:
    """Updates that do not touch can simply be added."""
    far = max(case.pairs(), key=lambda each: abs(each[2]), default=None)
    names = _untried(case, ("task_arithmetic", "cat"))
    if far is None or not names or abs(far[2]) > bound("apart") or case.collisions():
        return
    path, _, cosine = far
    sentence = (
        f"Worth trying: {names}. No two updates touch, the largest |cosine| is {abs(cosine):.2g} (up to {bound('apart'):g}), "
        "so a plain sum keeps all of them in full size."
    )
    yield finding("advice", "try_sum", sentence, cosine, f"{path}.cosine", threshold="apart")


def try_average(case: Case) -> Iterator[Finding]:
    """Updates that all point the same way have a meaningful mean."""
    near = min(case.pairs(), key=lambda each: each[2], default=None)
    names = _untried(case, ("linear", "karcher", "model_stock"))
    if near is None or not names or near[2] < bound("related"):
        return
    path, _, cosine = near
    sentence = (
        f"Worth trying: {names}. All updates point the same way, the smallest cosine is {cosine:.3g} "
        f"(from {bound('related'):g} on), so their mean means something."
    )
    yield finding("advice", "try_average", sentence, cosine, f"{path}.cosine", threshold="related")


def try_election(case: Case) -> Iterator[Finding]:
    """Updates that oppose each other need somebody to decide."""
    worst = min(case.pairs(), key=lambda each: each[2], default=None)
    names = _untried(case, ("ties", "della", "pcb"))
    if worst is None or not names or worst[2] > bound("opposed"):
        return
    path, pair, cosine = worst
    sentence = (
        f"Worth trying: {names}, to elect one sign where adapters disagree; {case.both(pair)} have cosine {cosine:.3g} "
        f"(at or below {bound('opposed'):g})."
    )
    about = [pair.first, pair.second]
    yield finding("advice", "try_election", sentence, cosine, f"{path}.cosine", threshold="opposed", adapters=about)


def try_separation(case: Case) -> Iterator[Finding]:
    """Updates that are not related and share directions can be pulled apart."""
    names = _untried(case, ("tsv_m", "wudi", "dc_merge"))
    for overlap, path, _, pair in case.collisions()[:1] if names else ():
        sentence = (
            f"Worth trying: {names}, to pull shared directions apart; {case.both(pair)} overlap by {overlap:.3g} "
            f"(from {bound('collide'):g} on)."
        )
        about = [pair.first, pair.second]
        yield finding("advice", "try_separation", sentence, overlap, path, threshold="collide", adapters=about)


def try_balance(case: Case) -> Iterator[Finding]:
    """Updates of very different size can be brought to one size first."""
    ratio = case.totals.norm_ratio
    if ratio is None or ratio < bound("norm_ratio"):
        return
    sentence = (
        f"Worth trying: pre: [norm_balance], or larger weights for the small updates; norms differ by a factor of {ratio:.3g} "
        f"(from {bound('norm_ratio'):g} on)."
    )
    yield finding("advice", "try_balance", sentence, ratio, "totals.norm_ratio", threshold="norm_ratio")


def try_robustmerge(case: Case) -> Iterator[Finding]:
    """Weak directions beside strong ones are what RobustMerge's scales are made for."""
    steep = [
        (update.spectrum[0] / median(update.spectrum), index)
        for index, update in enumerate(case.totals.updates)
        if update and update.spectrum
    ]
    names = _untried(case, ("robustmerge",))
    ratio, index = max(steep, default=(0.0, 0))
    if len(steep) < 2 or not names or ratio < bound("steep"):
        return
    sentence = (
        f"Worth trying: {names}, made to keep weak directions beside strong ones; the largest singular value of "
        f"{case.name(index)} is {ratio:.3g} times its median one (from {bound('steep'):g} on)."
    )
    path = f"totals.updates[{index}].spectrum"
    yield finding("advice", "try_robustmerge", sentence, ratio, path, threshold="steep", adapters=[index])


def try_others(case: Case) -> Iterator[Finding]:
    """A merge that destroys updates is worth a look at other methods, where none was compared."""
    worst = max(case.tasks(0), key=lambda each: each[2].destroyed, default=None)
    names = _untried(case, ("linear", "ties", "tsv_m"))
    if worst is None or len(case.methods) > 1 or worst[2].destroyed < bound("destroyed"):
        return
    path, index, task = worst
    sentence = (
        f"Worth trying: a comparison with {names}; {case.methods[0].label} destroys {task.destroyed:.1%} of {case.name(index)} "
        f"(from {bound('destroyed'):.0%} on)."
    )
    figure_at = f"{path}.destroyed"
    yield finding("advice", "try_others", sentence, task.destroyed, figure_at, threshold="destroyed", adapters=[index])


def _untried(case: Case, names: Sequence[str]) -> str:
    """Those of the methods that the report has no figures of, as a list in words; empty when it has of all."""
    known = {method.method for method in case.methods}
    rest = [name for name in names if name not in known]
    return " or ".join([", ".join(rest[:-1]), rest[-1]]) if len(rest) > 1 else "".join(rest)


# --- methods that were compared ---------------------------------------------------------------------------------------


def keeps_more(case: Case) -> Iterator[Finding]:
    """The compared method that destroys least, where it beats the recipe's clearly."""
    destroyed = [fmean(task.destroyed for _, _, task in case.tasks(method)) for method in _compared(case)]
    yield from _better(
        case,
        [-share for share in destroyed],
        "keeps_more",
        lambda best, gain: (
            f"it destroys {destroyed[best]:.1%} of the updates, mean over the adapters, {case.methods[0].label} "
            f"{destroyed[0]:.1%}: {gain:.2g} less"
        ),
    )


def keeps_directions(case: Case) -> Iterator[Finding]:
    """The compared method that keeps the strongest directions best, where it beats the recipe's clearly."""
    cosines = [fmean((task.top.left + task.top.right) / 2 for _, _, task in case.tasks(method)) for method in _compared(case)]
    yield from _better(
        case,
        cosines,
        "keeps_directions",
        lambda best, gain: (
            f"it finds the strongest directions again with |cosine| {cosines[best]:.3g}, {case.methods[0].label} with "
            f"{cosines[0]:.3g}: {gain:.2g} more"
        ),
    )


def _compared(case: Case) -> range:
    """All methods, the recipe's first; none where there is nothing to compare or to merge."""
    return range(len(case.methods)) if len(case.methods) > 1 and case.tasks(0) else range(0)


def _better(case: Case, scores: list[float], rule: str, say: Callable[[int, float], str]) -> Iterator[Finding]:
    if not scores:
        return
    best = max(range(len(scores)), key=scores.__getitem__)
    gain = scores[best] - scores[0]
    if gain >= bound(rule):
        sentence = f"Worth trying: {case.methods[best].label}; {say(best, gain)} (from {bound(rule):g} on)."
        yield finding("advice", rule, sentence, gain, f"totals.merges[{best}].tasks", methods=[best, 0])


REASONS: tuple[Callable[[Case], Iterator[Finding]], ...] = (
    try_sum,
    try_average,
    try_election,
    try_separation,
    try_balance,
    try_robustmerge,
    try_others,
    keeps_more,
    keeps_directions,
)
