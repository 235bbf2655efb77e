"""The peers' own functions where they are right: mergekit on dense deltas, PEFT on factors."""

from typing import Any

import pytest
import torch

from robustmerge_kit import spaces
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import FactorStack, Weights
from robustmerge_kit.methods import breadcrumbs, drm, lora_lego, peft_combine, sce, ties

ELEMENTWISE = {method.name: method for module in (breadcrumbs, sce, ties) for method in module.METHODS}
PEFT = {method.name: method for method in peft_combine.METHODS}


def stack_of(n: int, seed: int, weights: list[float], r: int = 4) -> FactorStack:
    generator = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(r, 17, generator=generator) for _ in range(n))
    b = tuple(torch.randn(23, r, generator=generator) for _ in range(n))
    return FactorStack(a, b, tuple(2.0 * w for w in weights), Weights.of(weights))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("ties", {"density": 0.3}, {"density": 0.3}),
        ("ties", {"density": 0.6, "normalize": False, "gain": 0.4}, {"density": 0.6, "normalize": False, "lambda": 0.4}),
        ("breadcrumbs", {"density": 0.6, "gamma": 0.1}, {"density": 0.6, "gamma": 0.1}),
        ("breadcrumbs_ties", {"density": 0.9, "gamma": 0.3}, {"density": 0.9, "gamma": 0.3}),
    ],
)
def test_mergekit(name: str, ours: dict[str, Any], theirs: dict[str, Any], seed: int) -> None:
    merge_methods = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed")
    weights = [1.0, 0.5, 1.3]
    stack = stack_of(3, seed, weights)
    method = ELEMENTWISE[name]
    site = spaces.represent("full", spaces.NoOptions(), stack)
    delta = spaces.merge(method, site, stack.weights, method.params(**ours), KeyedDraws.of(0, "site", list("abc")))
    assert isinstance(delta, spaces.Dense)
    deltas = [2.0 * b.double() @ a.double() for a, b in zip(stack.a, stack.b, strict=True)]
    inputs = [torch.zeros_like(deltas[0]), *deltas]
    want = merge_methods.merge_tensors(inputs, name, base_index=0, parameters={**theirs, "weight": weights})
    assert float((delta.full() - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize("name", ["peft_magnitude_prune", "peft_ties"])
@pytest.mark.parametrize("density", [0.3, 0.55])
@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_peft(name: str, density: float, sign: str) -> None:
    merge_utils = pytest.importorskip("peft.utils.merge_utils", reason="PEFT is not installed")
    stack = stack_of(3, 4, [1.0, 0.5, -0.7])
    method = PEFT[name]
    extra = {"majority_sign_method": sign} if name == "peft_ties" else {}
    got = method.merge(stack, method.params(density=density, **extra), KeyedDraws.of(0, "site", list("abc")))
    roots = torch.tensor([abs(c) ** 0.5 for c in stack.coefficients])
    signed = roots * torch.tensor(stack.coefficients).sign()
    function = merge_utils.ties if name == "peft_ties" else merge_utils.magnitude_prune
    options = {"majority_sign_method": sign} if name == "peft_ties" else {}
    assert torch.allclose(got.a, function(list(stack.a), signed, density, **options), atol=1e-6)
    assert torch.allclose(got.b, function(list(stack.b), roots, density, **options), atol=1e-6)


@pytest.mark.parametrize("name", ["peft_dare_linear", "peft_dare_ties"])
def test_peft_dare_keeps_what_the_draws_say(name: str) -> None:
    stack, draws = stack_of(2, 4, [1.0, 0.5], r=16), KeyedDraws.of(0, "site", list("ab"))
    method = PEFT[name]
    got = method.merge(stack, method.params(density=0.4), draws)
    for factors, part, merged in ((stack.a, "A", got.a), (stack.b, "B", got.b)):
        kept = [x * (draws.uniform(t, f"peft_dare drop {part}", x) < 0.4) / 0.4 for t, x in enumerate(factors)]
        weighted = [x * abs(c) ** 0.5 for x, c in zip(kept, stack.coefficients, strict=True)]
        if name == "peft_dare_linear":
            want = sum(weighted)
        else:
            agrees = [x.sign() == torch.where(sum(kept) >= 0, 1.0, -1.0) for x in kept]
            count = sum(x.float() for x in agrees).clamp_min(1)
            want = sum(x * a for x, a in zip(weighted, agrees, strict=True)) / count
        assert torch.allclose(merged, want, atol=1e-6)
        assert 0.3 < float(torch.stack(kept).count_nonzero() / torch.stack(kept).numel()) < 0.5


@pytest.mark.parametrize("direction", ["horizontal", "vertical"])
@pytest.mark.parametrize(("density", "cut"), [(0.2, 0.01), (0.7, 0.3), (1.0, 0.0)])
def test_drm_by_the_book(direction: str, density: float, cut: float) -> None:
    stack = stack_of(3, 9, [1.0, -0.5, 1.3])
    double = FactorStack(
        tuple(x.double() for x in stack.a), tuple(x.double() for x in stack.b), stack.coefficients, stack.weights
    )
    params = drm.Drm(density=density, direction=direction, spectrum_cut=cut, gain=0.7)
    got = drm.METHODS[0].merge(double, params, KeyedDraws.of(0, "site", list("abc")))
    deltas = [c * b @ a for c, a, b in zip(double.coefficients, double.a, double.b, strict=True)]
    if direction == "vertical":
        deltas = [x.mT for x in deltas]
    u, s, vh = torch.linalg.svd(torch.cat(deltas, 1), full_matrices=False)
    keep = s > max(cut, 1e-10) * s[0]
    u, s, parts = u[:, keep], s[keep], vh[keep].split(deltas[0].shape[1], 1)
    lengths = [v.norm(dim=1, keepdim=True) for v in parts]
    unit = [v / length for v, length in zip(parts, lengths, strict=True)]
    values = torch.stack(unit).abs().flatten().sort().values
    position = len(values) - round(len(values) * density)
    least = values[position - 1] if position else -1.0
    xs = torch.stack([s[:, None] * n * torch.where(v.abs() >= least, v, 0.0) for n, v in zip(lengths, unit, strict=True)])
    agrees = xs * torch.where(xs.sum(0) >= 0, 1.0, -1.0) > 0
    want = 0.7 * u @ ((xs * agrees).sum(0) / agrees.sum(0).clamp_min(1))
    want = want.mT if direction == "vertical" else want
    assert float((got.b @ got.a - want).norm() / want.norm()) < 1e-8


def test_lego_keeps_all_units_when_there_are_few() -> None:
    stack = stack_of(2, 1, [1.0, -0.5])
    got = lora_lego.METHODS[0].merge(stack, lora_lego.LoraLego(rank=8), KeyedDraws.of(0, "site", list("ab")))
    want = sum(c * b @ a for c, a, b in zip(stack.coefficients, stack.a, stack.b, strict=True))
    assert got.rank == 8
    assert torch.allclose(got.b @ got.a, want, atol=1e-5)


def test_lego_finds_planted_clusters_and_scales_by_the_recipe() -> None:
    """Units around k centres far apart: whatever the starts, the centres are the planted ones."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.eye(3, 12)
    units = [centres + 1e-3 * torch.randn(3, 12, generator=generator) for _ in range(4)]
    stack = FactorStack(tuple(u[:, :7] for u in units), tuple(u[:, 7:].mT for u in units), (1.0,) * 4, Weights.of((1.0,) * 4))
    draws = KeyedDraws.of(0, "site", list("abcd"))
    for scale, want in (("total", 2.0), ("single", 1.0)):
        got = lora_lego.METHODS[0].merge(stack, lora_lego.LoraLego(rank=3, output_scale=scale), draws)
        joined = torch.cat([got.a, got.b.mT / want], 1)
        assert torch.allclose(joined[joined.argmax(0)[:3]], centres, atol=0.01)
