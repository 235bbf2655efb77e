"""RobustMerge as a method of mergekit."""

import pytest
import torch

pytest.importorskip("mergekit", reason="mergekit is not installed")
from mergekit.merge_methods import merge_tensors

from robustmerge_kit import for_mergekit
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import FactorStack, LowRank, Weights, decompose
from robustmerge_kit.methods.robustmerge import RobustMerge, merge_robust


def tensors(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(20, 16, generator=generator)
    deltas = [torch.randn(20, 4, generator=generator) @ torch.randn(4, 16, generator=generator) for _ in range(3)]
    return [base.to(dtype), *((base + delta).to(dtype) for delta in deltas)]


def test_it_is_robustmerge_of_the_refactored_deltas() -> None:
    base, *models = tensors()
    low = [decompose(LowRank((model - base).double(), torch.eye(16, dtype=torch.float64))).cut(4) for model in models]
    stack = FactorStack(
        tuple(x.a.float() for x in low), tuple(x.b.float() for x in low), (1.0, 0.5, 2.0), Weights.of((1.0, 0.5, 2.0))
    )
    want = merge_robust(stack, RobustMerge(variant="paper", density=0.4, gain=1.5), KeyedDraws.of(0, "site", list("abc")))
    parameters = {"weight": [1.0, 0.5, 2.0], "rank": 4, "variant": "paper", "density": 0.4, "gain": 1.5}
    got = merge_tensors([base, *models], "robustmerge", base_index=0, parameters=parameters)
    delta = want.b @ want.a
    assert float((got - base - delta).norm() / delta.norm()) < 1e-3


def test_identity_at_density_and_gain_one() -> None:
    base, model, *_ = tensors()
    got = merge_tensors([base, model], "robustmerge", base_index=0, parameters={"density": 1.0, "gain": 1.0, "rank": 4})
    assert torch.allclose(got, model, atol=1e-4)


def test_vectors_are_averaged_and_unchanged_models_are_absent() -> None:
    base = torch.zeros(6)
    got = merge_tensors([base, base + 1, base + 3], for_mergekit.METHOD, base_index=0, parameters={})
    assert torch.equal(got, torch.full((6,), 2.0))
    matrix = torch.randn(5, 5)
    assert torch.equal(merge_tensors([matrix, matrix.clone()], "robustmerge", base_index=0, parameters={}), matrix)


def test_the_dtype_of_the_base_is_kept() -> None:
    assert merge_tensors(tensors(torch.bfloat16), "robustmerge", base_index=0, parameters={"rank": 4}).dtype == torch.bfloat16
