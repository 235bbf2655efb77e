"""Build the plan: which adapters meet at which site, by which method, to which rank; the last stop of every user mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import BaseModel

from ..adapters import Adapter
from ..dora import widest_rank
from ..errors import PlanError, RecipeError, RmkitError, raise_all
from ..method import Method, Params
from ..methods import find
from ..recipe import Recipe, SiteSettings, count_layers, effective_settings, resolve_params, same_everywhere, stack_name
from ..spaces import rank as rank_in_space
from ..transforms import Post
from .experts import common_columns, nest_experts
from .extras import plan_extras
from .fold import DEFAULT_LAYOUT, Layout, plan_fold
from .gather import Inputs
from .legality import check_dense, resolve_post, resolve_pre, resolve_space
from .llava import llava_target
from .profiles import check_profile, served_rank
from .steps import BaseWeight, Member, Plan, SiteStep, takes_deltas
from .targets import Target, model, peft, same
from .weights import find_weights, notes_on_weights


def make_plan(recipe: Recipe, inputs: Inputs, layout: Layout = DEFAULT_LAYOUT) -> Plan:
    """Plan a merge of aligned adapters; headers only. `layout`: how a folded model is split into files.

    Raises: PlanError (all problems at once) when recipe and inputs do not fit together.
    """
    adapters = inputs.adapters
    target = replace(_target(recipe, adapters), columns=common_columns(adapters))
    dtype = recipe.output.dtype or _widest(adapters)
    sites = sorted({site for adapter in adapters for site in adapter.sites})
    _check_missing(recipe, adapters, sites)
    _check_overrides(recipe, sites)
    layers = count_layers(sites)
    common = effective_settings(recipe, sites[0], 1) if same_everywhere(recipe) else None
    weights = find_weights(recipe, adapters, inputs.base)
    settle = _Settler(recipe)
    steps: list[SiteStep] = []
    errors: dict[str, RmkitError] = {}
    for site in sites:
        try:
            settings = common or effective_settings(recipe, site, layers[stack_name(site)])
            step = _plan_site(site, recipe, adapters, settings, target, settle, weights.get(site))
        except (PlanError, RecipeError) as error:
            errors.setdefault(error.what, error)
            continue
        if step is not None:
            steps.append(step)
    raise_all(errors.values())
    if not steps:
        raise PlanError("every weight is 0: there is nothing to merge", hint="give at least one adapter a weight")
    steps = nest_experts(steps, target)
    fold = None
    if recipe.output.kind == "model":
        assert inputs.base is not None
        fold = plan_fold(recipe, adapters, steps, inputs.base, layout)
        extras, dropped = (), fold.dropped
    else:
        extras, dropped = plan_extras(recipe, adapters, target, recipe.output.dtype)
    remarks = (f"{adapter.label}: {note}" for adapter in adapters for note in adapter.notes)
    plan = Plan(
        recipe=recipe,
        adapters=adapters,
        target=target,
        dtype=fold.dtype if fold else dtype,
        steps=_with_width(steps, recipe),
        extras=extras,
        dropped=dropped,
        notes=(*recipe.notes, *inputs.notes, *(fold.notes if fold else ()), *remarks, *notes_on_weights(steps)),
        fold=fold,
        base=inputs.base if fold or weights else None,
    )
    check_profile(plan)
    return plan


class _Settler:
    """Methods, transforms and parameters, built once for every distinct set of values: sites mostly share them."""

    def __init__(self, recipe: Recipe) -> None:
        self.pre = resolve_pre(recipe.pre)
        self.post = resolve_post(recipe.post)
        self._methods: dict[str, Method] = {}
        self._params: dict[tuple[str, str], Params] = {}

    def method(self, name: str) -> Method:
        if name not in self._methods:
            self._methods[name] = find(name)
        return self._methods[name]

    def params(self, method: Method, values: Mapping[str, Any], site: str) -> Params:
        key = method.name, repr(sorted(values.items()))
        if key not in self._params:
            self._params[key] = resolve_params(method, values, f"site {site}")
        return self._params[key]


def _plan_site(
    site: str,
    recipe: Recipe,
    adapters: Sequence[Adapter],
    settings: SiteSettings,
    target: Target,
    settle: _Settler,
    weight: BaseWeight | None,
) -> SiteStep | None:
    method = settle.method(settings.method)
    present = [
        Member(index, adapter.sites[site], settings.weights[index])
        for index, adapter in enumerate(adapters)
        if site in adapter.sites and settings.weights[index] != 0
    ]
    if not present:
        return None
    chosen = [member.index for member in present]
    absent: tuple[tuple[int, float], ...] = ()
    if recipe.missing == "zero":
        weighted = [(i, settings.weights[i]) for i, a in enumerate(adapters) if site not in a.sites]
        absent = tuple((i, weight) for i, weight in weighted if weight != 0)
    values = {
        name: tuple(value[i] for i in chosen) if isinstance(value, tuple) else value
        for name, value in settings.parameters.items()
    }
    params = settle.params(method, values, site)
    _check_method(site, method, params, present, [weight for _, weight in absent])
    ranks = [member.rank for member in present]
    space = resolve_space(settings.space, method, site)
    own_rank = rank_in_space(space[0], space[1], ranks) if space else method.rank(ranks, params)
    model = present[0].factors
    if space and space[0] == "full":
        check_dense(site, model.d_out, model.d_in)
    full_rank = min(model.d_out, model.d_in) if space and space[0] == "full" else own_rank
    scaled = any(member.factors.magnitude for member in present)
    if scaled:
        exact = takes_deltas(method, space, settle.pre, settle.post)
        full_rank = _rank_on_base(site, method, params, space, present, exact=exact)
        flat = method.flat_spectrum or any(post.flat_spectrum for post, _ in settle.post)
        own_rank = full_rank if flat else min(own_rank, full_rank)
    whole = settle.params(method, settings.parameters, site) if getattr(params, "scope", "module") == "global" else None
    return SiteStep(
        site=site,
        members=tuple(present),
        absent=absent,
        method=method,
        params=params,
        survey=whole,
        space=space,
        pre=settle.pre,
        post=settle.post,
        full_rank=full_rank,
        cut=_cut(recipe, method, settle.post, own_rank, full_rank, ranks),
        width=full_rank,
        names=target.factor_names(site, model),
        columns=target.columns,
        weight=weight if scaled or any(member.factors.initial for member in present) else None,
    )


def _rank_on_base(
    site: str,
    method: Method,
    params: Params,
    space: tuple[str, BaseModel] | None,
    present: Sequence[Member],
    *,
    exact: bool,
) -> int:
    """Upper bound of the result's rank where a member is DoRA: the weight's own where deltas are taken as they are."""
    model = present[0].factors
    if exact:
        return min(model.d_out, model.d_in)
    if method.equal_ranks:
        raise PlanError(
            f"{method.name} needs adapters of equal rank, which DoRA's deltas do not have",
            where=f"site {site}",
            hint="use a method of the deltas, e.g. linear or ties",
        )
    ranks = [widest_rank(m.rank, model.d_out, model.d_in) if m.factors.magnitude else m.rank for m in present]
    return rank_in_space(space[0], space[1], ranks) if space else method.rank(ranks, params)


def _check_method(site: str, method: Method, params: Params, present: Sequence[Member], absent: Sequence[float]) -> None:
    least, most = method.adapters
    count = len(present) + len(absent)
    if count < least or (most is not None and count > most):
        wanted = f"exactly {least}" if least == most else f"at least {least}" if most is None else f"{least} to {most}"
        raise PlanError(
            f"{method.name} takes {wanted} adapters, got {count}",
            where=f"site {site}",
            hint="use another method, or `overrides` for these sites",
        )
    ranks = sorted({member.rank for member in present})
    if method.equal_ranks and len(ranks) > 1:
        raise PlanError(
            f"{method.name} needs adapters of equal rank, got ranks {', '.join(map(str, ranks))}",
            where=f"site {site}",
            hint="use a method of the deltas, e.g. linear or ties",
        )
    sentence = method.check(params, [*(member.weight for member in present), *absent])
    if sentence:
        raise PlanError(f"{method.name}: {sentence}", where=f"site {site}")


def _cut(
    recipe: Recipe,
    method: Method,
    post: Sequence[tuple[Post, Params]],
    own_rank: int,
    full_rank: int,
    ranks: Sequence[int],
) -> int | None:
    """The rank a result is truncated to, None when it is written as it is or the data decide."""
    rule = recipe.output.rank
    if recipe.output.kind == "model" and rule in ("auto", "sum"):
        return None
    if method.output_rank == "sum" and rule not in ("auto", "sum"):
        raise PlanError(f"{method.name} keeps the full rank, but output.rank is {rule}", hint="use svd or task_arithmetic")
    if method.output_rank == "required" and rule == "auto":
        raise PlanError(
            f"{method.name} needs output.rank", hint="set e.g. output: {rank: 16}, or use cat to keep the full rank"
        )
    if rule in ("auto", "sum") or not isinstance(rule, int | str):
        wanted = own_rank
    else:
        wanted = max(ranks) if rule == "max" else rule
    truncates = not isinstance(rule, int | str) or wanted < own_rank
    flat = [method.name] * method.flat_spectrum + [step.name for step, _ in post if step.flat_spectrum]
    if truncates and flat and not recipe.output.allow_arbitrary_truncation:
        raise PlanError(
            f"{flat[0]} makes all singular values alike, so cutting rank {full_rank} to {wanted} keeps arbitrary directions",
            hint="choose the rank inside the method or space: ctm, or set output.allow_arbitrary_truncation: true",
        )
    return wanted if wanted < full_rank else None


def _with_width(steps: Sequence[SiteStep], recipe: Recipe) -> tuple[SiteStep, ...]:
    """Pad every site to one rank: the recipe's, else the largest that occurs."""
    rule = recipe.output.rank
    own = {step.site: step.full_rank if step.cut is None else step.cut for step in steps}
    widest = served_rank(recipe.output, max(max(own.values()), rule if isinstance(rule, int) else 0))
    return tuple(replace(step, width=widest if recipe.output.uniform else own[step.site]) for step in steps)


# --- what does not concern a single site ------------------------------------------------------------------------------


def _target(recipe: Recipe, adapters: Sequence[Adapter]) -> Target:
    output = recipe.output
    if output.kind == "model":
        return model()
    layouts = {adapter.layout for adapter in adapters}
    unnamed = layouts & {"numbered", "kohya"}
    if not output.uniform and output.for_ != "peft":
        raise PlanError(
            "output.uniform: false writes rank_pattern and alpha_pattern, which servers do not read",
            hint="add output.for: peft, or leave ranks uniform",
        )
    if output.format == "same":
        if layouts == {"peft"}:
            return peft(output.weights or "safetensors")
        if layouts == {"llava"}:
            return llava_target(recipe, adapters)
        if len(layouts) > 1 or layouts == {"mlx"}:
            raise PlanError(f"format: same cannot write {' and '.join(sorted(layouts))} inputs", hint="use format: peft")
        return same(adapters[0].sites[next(iter(adapters[0].sites))].a.path.name, alphas=layouts == {"kohya"})
    if unnamed:
        layout = unnamed.pop()
        reason = {
            "numbered": "the file does not name its modules",
            "kohya": "underscored names cannot be turned back into module names without the model",
        }[layout]
        raise PlanError(f"a {layout} LoRA cannot be written as {output.format}: {reason}", hint="set output: {format: same}")
    if output.format == "llava":
        return llava_target(recipe, adapters)
    return peft(output.weights or "safetensors")


def _widest(adapters: Sequence[Adapter]) -> Literal["float32", "float16", "bfloat16"]:
    stored = {spec.dtype for a in adapters for f in a.sites.values() for spec in (f.a.spec, f.b.spec)}
    if stored <= {"float16"}:
        return "float16"
    if stored <= {"bfloat16"}:
        return "bfloat16"
    return "float32"


def _check_missing(recipe: Recipe, adapters: Sequence[Adapter], sites: Sequence[str]) -> None:
    if recipe.missing != "error":
        return
    errors: list[RmkitError] = []
    for index, adapter in enumerate(adapters):
        lacking = [site for site in sites if site not in adapter.sites]
        if lacking:
            errors.append(
                PlanError(
                    f"lacks {len(lacking)} of {len(sites)} sites that other adapters have, the first: {lacking[0]}",
                    where=f"adapter {index + 1} ({adapter.label})",
                    hint="set missing: zero (it adds nothing there) or missing: renormalize (means leave it out)",
                )
            )
    raise_all(errors)


def _check_overrides(recipe: Recipe, sites: Sequence[str]) -> None:
    raise_all(
        PlanError(
            f"overrides[{index}].match {override.match!r} matches none of the {len(sites)} sites",
            hint=f"sites look like {sites[0]}",
        )
        for index, override in enumerate(recipe.overrides)
        if not any(fnmatchcase(site, override.match) for site in sites)
    )
