"""mergekit on dense deltas as a second opinion, where its absolute tolerances do not bite."""

import pytest
import stacks
import torch

from robustmerge_kit import methods

merging = pytest.importorskip("mergekit.merge_methods", reason="mergekit is not installed")

CASES = [
    ("slerp", {"t": 0.3}, {"t": 0.3}, (4, 4), [1.0, 1.0]),
    ("nuslerp", {}, {}, (5, 2), [0.7, 1.9]),
    ("karcher", {}, {"max_iter": 10, "tol": 1e-5}, (3, 5, 4, 2), [1.0] * 4),
    ("multislerp", {}, {}, (3, 5, 4), [0.7, 1.9, 1.1]),
    ("model_stock", {}, {}, (3, 5, 4), [1.0] * 3),
    ("model_stock", {"filter_wise": True}, {"filter_wise": True}, (3, 5, 4), [1.0] * 3),
]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(("name", "ours", "theirs", "ranks", "weights"), CASES)
def test_same_as_mergekit(name, ours, theirs, ranks, weights, seed):
    scales = [30.0, 20.0, 25.0, 10.0][: len(ranks)]
    stack = stacks.make(ranks, 30, 26, seed=seed, weights=weights, scales=scales, dtype=torch.float64)
    plain = [d / w for d, w in zip(stacks.deltas(stack), weights, strict=True)]
    options = dict(theirs)
    based = name in ("multislerp", "model_stock")
    if name in ("nuslerp", "multislerp"):
        options["weight"] = weights
    tensors = [torch.zeros_like(plain[0]), *plain] if based else plain
    wanted = merging.merge_tensors(tensors, name, parameters=options, base_index=0 if based or name == "slerp" else None)
    method = methods.find(name)
    assert stacks.difference(stacks.merged(method, stack, method.params(**ours)), wanted) < 1e-6
