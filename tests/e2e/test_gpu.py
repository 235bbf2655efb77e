"""The same merges on a CUDA device: results within 1e-5 of the CPU, batches that shrink when device memory runs out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import error, factors, read_deltas, run, sites, write_adapter, write_adapters, write_recipe

from robustmerge_kit import sites as room
from robustmerge_kit.resources import Resources, pick_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

SHAPES = {"q_proj": (96, 80), "k_proj": (96, 80), "up_proj": (160, 80), "down_proj": (80, 160)}
WHERE = sites(4, SHAPES)

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear"},
    "svd": {"method": "svd", "output": {"rank": 6}},
    "official": {"method": "robustmerge"},
    "paper": {"method": "robustmerge", "parameters": {"variant": "paper"}},
    "random masks": {"method": "robustmerge", "parameters": {"criterion": "random"}},
    "tsv_m": {"method": "tsv_m"},
    "ties": {"method": "ties", "parameters": {"density": 0.3}, "space": "core", "output": {"rank": 8}},
    "energy": {"method": "task_arithmetic", "output": {"rank": {"energy": 0.9}}},
    "steps": {"method": "linear", "pre": [{"norm_balance": {}}], "post": [{"rescale_output": {"to": "mean_norm"}}]},
}


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpu_and_gpu_agree(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 4, where=WHERE, dtype=dtype)
    keys = {**RECIPES[case], "output": {**RECIPES[case].get("output", {}), "dtype": "float32"}}
    recipe = write_recipe(tmp_path, adapters, **keys)
    run(recipe, tmp_path / "cpu")
    run(recipe, tmp_path / "gpu", Resources(device=pick_device("auto"), workers=2))
    expected, found = read_deltas(tmp_path / "cpu"), read_deltas(tmp_path / "gpu")
    assert max(error(found[site], expected[site]) for site in expected) < 1e-5


@pytest.mark.parametrize("case", RECIPES)
def test_workers_and_batches_change_nothing_beyond_1e_5(case: str, tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 3, where=WHERE)
    recipe = write_recipe(tmp_path, adapters, **RECIPES[case])
    results: list[dict[str, torch.Tensor]] = []
    for workers, batch in ((1, None), (3, None), (2, 1), (1, 3)):
        out = tmp_path / f"{workers} {batch}"
        run(recipe, out, Resources(device="cuda", workers=workers, batch=batch))
        results.append(read_deltas(out))
    assert max(error(found[site], results[0][site]) for found in results for site in found) < 1e-5


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that were tried."""
    sizes: list[int] = []
    real = room.merge_site

    def merge_site(stack: Any, *rest: Any) -> Any:
        sizes.append(stack.batch[0] if stack.batch else 1)
        return real(stack, *rest)

    monkeypatch.setattr(room, "merge_site", merge_site)
    return sizes


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leaves this process about 256 MB of device memory."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    held = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (held + (256 << 20)) / total))
    assert free > 512 << 20
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_batch_that_does_not_fit_is_halved(tmp_path: Path, tried: list[int], little_memory: None) -> None:
    where = sites(16, {"q_proj": (8192, 8192)})
    tensors = factors(sites(1, {"q_proj": (8192, 8192)}), 1, 32)
    a, b = tensors.values()
    stored = {
        name.replace("layers.0", f"layers.{i}"): value.clone()
        for i in range(16)
        for name, value in zip(tensors, (a, b), strict=True)
    }
    adapters = [write_adapter(tmp_path / f"t{i}", tensors=stored, where=where, r=32) for i in range(4)]
    recipe = write_recipe(tmp_path, adapters, "svd", output={"rank": 16})
    run(recipe, tmp_path / "gpu", Resources(device="cuda", batch=16))
    assert tried[0] == 16
    assert min(tried) < 16
    run(recipe, tmp_path / "cpu")
    expected, found = read_deltas(tmp_path / "cpu"), read_deltas(tmp_path / "gpu")
    assert max(error(found[site], expected[site]) for site in list(expected)[:2]) < 1e-5


def test_the_memory_given_bounds_the_batch(tmp_path: Path, tried: list[int]) -> None:
    adapters = write_adapters(tmp_path, 2, where=sites(12, {"q_proj": (64, 64)}))
    recipe = write_recipe(tmp_path, adapters, "linear")
    run(recipe, tmp_path / "all", Resources(device="cuda"))
    assert max(tried) == 12
    tried.clear()
    run(recipe, tmp_path / "few", Resources(device="cuda", gpu_memory=100_000))
    assert max(tried) < 12
