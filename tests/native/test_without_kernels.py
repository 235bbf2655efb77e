"""Whole runs with and without the compiled loops: the same result, to the rounding of sums."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_adapters import run, sites, write_adapters, write_recipe
from small_bases import read_weights, tensors, write_base

from robustmerge_kit import native

pytestmark = pytest.mark.skipif(not native.available(), reason="built without native kernels")

SITES = sites(1, {"q_proj": (300, 520), "up_proj": (37, 41)})


def run_with(kernels: str, recipe: Path, out: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The receipt of a run."""
    with patch.context() as scope:
        if kernels == "torch":
            scope.setattr(native, "available", lambda: False)
        run(recipe, out)
    receipt = json.loads((out / "rmkit.json").read_text())
    assert receipt["versions"]["kernels"] == kernels
    return receipt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", ["official", "paper", "factor_sum"])
def test_robustmerge_is_the_same_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, variant: str
) -> None:
    adapters = write_adapters(tmp_path, 3, where=SITES, dtype=dtype)
    keys = {"parameters": {"variant": variant, "density": 0.3}, "output": {"dtype": "float32"}}
    recipe = write_recipe(tmp_path, adapters, "robustmerge", **keys)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for kernels in ("native", "torch"):
        run_with(kernels, recipe, tmp_path / kernels, monkeypatch)
        found[kernels] = load_file(tmp_path / kernels / "adapter_model.safetensors")
    assert found["native"].keys() == found["torch"].keys()
    for name, expected in found["torch"].items():
        assert expected.any()
        # The masks agree entry by entry; only the scales are sums.
        assert torch.equal(found["native"][name] == 0, expected == 0)
        torch.testing.assert_close(found["native"][name], expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_fold_is_the_same_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    base = write_base(tmp_path / "base", tensors(dtype=dtype))
    keys = {"base_model": str(base), "output": {"kind": "model"}}
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2), "linear", **keys)
    receipts = {kernels: run_with(kernels, recipe, tmp_path / kernels, monkeypatch) for kernels in ("native", "torch")}
    ours, theirs = (read_weights(tmp_path / kernels) for kernels in ("native", "torch"))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert torch.equal(ours[name], expected)
    with_kernels, without = (receipts[kernels]["totals"]["rounding_error"] for kernels in ("native", "torch"))
    assert with_kernels == pytest.approx(without, rel=1e-5)
    assert (without > 0) == (dtype != torch.float32)
