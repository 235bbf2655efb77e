"""RobustMerge inside mergekit: importing this module registers the merge method `robustmerge` there.

    python -c "import robustmerge_kit.for_mergekit; from mergekit.scripts.run_yaml import main; main()" CONFIG OUT

RobustMerge merges factors, which full models do not have. So the delta of every model from `base_model` is factored anew,
B = U sqrt(S), A = sqrt(S) V^T of its best approximation of rank `rank`, then merged and added to the base. For models that
are a base with one adapter baked in, take the adapter's rank. The factors differ from the trained ones by a rotation of the
rank axis, on which RobustMerge depends: numbers from the adapters themselves need `rmkit run`.

    rank        16        of each re-factored delta
    variant, density, gain, as in `rmkit methods robustmerge`
    weight      1.0       per model

Tensors that are not matrices, such as norms and biases, get the mean of their deltas.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from .compress import compress
from .draws import KeyedDraws
from .errors import PluginError
from .factors import FactorStack, LowRank, Weights
from .methods.robustmerge import RobustMerge, merge_robust
from .spaces import Dense

try:
    from mergekit.merge_methods import BasePolicy, InputContract, PerNonBase, TensorGroup, merge_method, register
except ImportError as error:
    raise PluginError(
        f"robustmerge_kit.for_mergekit needs mergekit 0.1.5: {error}", hint="pip install 'mergekit>=0.1.5,<0.2'"
    ) from error


def robustmerge(
    group: TensorGroup,
    weight: PerNonBase[float] = 1.0,  # type: ignore[assignment]
    rank: int = 16,
    variant: Literal["official", "paper", "factor_sum"] = "official",
    density: float = 0.2,
    gain: float = 2.0,
) -> torch.Tensor:
    """Merge one tensor of several models by RobustMerge of their re-factored deltas.

    Shapes: any -> the same; only matrices are factored.
    """
    if group.base is None:
        raise ValueError("robustmerge needs base_model")
    base = group.base.tensor.float()
    deltas = [entry.tensor.float() - base for entry in group.non_base]
    if base.ndim != 2:
        return (base + torch.stack(deltas).mean(0)).to(group.base.tensor.dtype) if deltas else group.base.tensor
    draws = KeyedDraws.of(0, group.metadata.name or "", [str(entry.id) for entry in group.non_base])
    factors = [_factored(delta, rank, draws.for_part(str(t))) for t, delta in enumerate(deltas)]
    weights = weight.values_for(group.non_base)
    kept = [t for t, factor in enumerate(factors) if factor.rank and weights[t]]
    if not kept:
        return group.base.tensor
    each = [weights[t] for t in kept]
    stack = FactorStack(tuple(factors[t].a for t in kept), tuple(factors[t].b for t in kept), tuple(each), Weights.of(each))
    params = RobustMerge(variant=variant, density=density, gain=gain)
    merged = merge_robust(stack, params, draws)
    return (base + merged.b @ merged.a).to(group.base.tensor.dtype)


def _factored(delta: torch.Tensor, rank: int, draws: KeyedDraws) -> LowRank:
    """The best approximation, without directions beyond its numerical rank."""
    whole = Dense(delta.shape, delta.shape[0], lambda start, stop: delta[start:stop])
    spectral = compress(whole, rank, draws).spectral
    return spectral.cut(spectral.rank)


METHOD: Any = merge_method(
    robustmerge,
    name="robustmerge",
    pretty_name="RobustMerge",
    reference_url="https://arxiv.org/abs/2502.17159",
    contract=InputContract(base=BasePolicy.REQUIRED, min_inputs=2),
)
register(METHOD)
