"""The executor: the same bytes however it runs, memory within its budget, failures that are explained."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import (
    PREFIX,
    content,
    error,
    factors,
    merged,
    read_deltas,
    run,
    sites,
    write_adapter,
    write_adapters,
    write_recipe,
)
from torch import Tensor

from robustmerge_kit import sites as room
from robustmerge_kit.errors import InputError, PlanError
from robustmerge_kit.execute import execute
from robustmerge_kit.merge import prepare
from robustmerge_kit.plan import Plan, SiteStep
from robustmerge_kit.resources import Resources
from robustmerge_kit.shards import TensorRef, TensorSpec

SHAPES = {"q_proj": (12, 10), "k_proj": (12, 10), "up_proj": (30, 10), "down_proj": (10, 30)}

RECIPES: dict[str, dict[str, Any]] = {
    "robustmerge": {"method": "robustmerge"},
    "random masks": {"method": "robustmerge", "parameters": {"criterion": "random"}},
    "svd": {"method": "svd", "output": {"rank": 3}},
    "tsv_m": {"method": "tsv_m"},
    "ranks by energy": {"method": "task_arithmetic", "output": {"rank": {"energy": 0.9}}},
    "steps": {"method": "linear", "pre": [{"norm_balance": {}}], "post": [{"rescale_output": {"to": "mean_norm"}}]},
}


def varied(place: Path) -> list[Path]:
    """Four adapters, one of which is zero at a site."""
    where = sites(4, SHAPES)
    zero = factors(where, 9)
    zero[f"{PREFIX}model.layers.2.q_proj.lora_B.weight"].zero_()
    return [*write_adapters(place, 3, where=where), write_adapter(place / "partly_zero", where=where, tensors=zero)]


@pytest.mark.parametrize("case", RECIPES)
def test_bytes_do_not_depend_on_the_number_of_workers(case: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, varied(tmp_path), **RECIPES[case])
    results = [content(run(recipe, tmp_path / f"-j {j}", Resources(workers=j)).path) for j in (1, 2, 4)]
    assert [found == results[0] for found in results] == [True] * 3


@pytest.mark.parametrize("case", RECIPES)
@pytest.mark.parametrize("batch", [1, 3, 1000])
def test_batches_change_no_number(batch: int, case: str, tmp_path: Path) -> None:
    """Up to 1e-6: the library's batched products and decompositions round in another order than single ones."""
    recipe = write_recipe(tmp_path, varied(tmp_path), **RECIPES[case])
    run(recipe, tmp_path / "single")
    run(recipe, tmp_path / "batched", Resources(workers=2, batch=batch))
    expected, found = read_deltas(tmp_path / "single"), read_deltas(tmp_path / "batched")
    assert max(error(found[site], expected[site]) for site in expected) < 1e-6
    if batch == 1:
        assert content(tmp_path / "single") == content(tmp_path / "batched")


# --- budget and overlap -----------------------------------------------------------------------------------------------


class Desk:
    """What lies between reading and writing: bytes by site, seen through wrapped references and a sink."""

    def __init__(self, plan: Plan, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.cost = {step.site: step.work_bytes for step in plan.steps}
        self.site_of = {name: step.site for step in plan.steps for name in step.names}
        self.last = {step.names[1]: step.site for step in plan.steps}
        self.open: set[str] = set()
        self.peak = self.most = 0
        self.reads: list[tuple[float, float]] = []
        self.lock = threading.Lock()
        self.plan = replace(plan, steps=tuple(self._wrap(step) for step in plan.steps))

    def _wrap(self, step: SiteStep) -> SiteStep:
        members = tuple(
            replace(
                member,
                factors=replace(
                    member.factors, a=Slow(member.factors.a, self, step.site), b=Slow(member.factors.b, self, step.site)
                ),
            )
            for member in step.members
        )
        return replace(step, members=members)

    def begin(self, site: str) -> None:
        with self.lock:
            self.open.add(site)
            self.peak = max(self.peak, sum(self.cost[each] for each in self.open))
            self.most = max(self.most, len(self.open))

    def write(self, name: str, tensor: Tensor) -> None:
        if name in self.last:
            with self.lock:
                self.open.discard(self.last[name])


@dataclass(frozen=True)
class Slow:
    """A tensor whose reading is counted and takes time."""

    ref: TensorRef
    desk: Desk
    site: str

    @property
    def spec(self) -> TensorSpec:
        return self.ref.spec

    @property
    def path(self) -> Path:
        return self.ref.path

    @property
    def where(self) -> str:
        return self.ref.where

    def read(self) -> Tensor:
        self.desk.begin(self.site)
        start = time.perf_counter()
        time.sleep(self.desk.seconds)
        value = self.ref.read()
        self.desk.reads.append((start, time.perf_counter()))
        return value


def planned(place: Path, layers: int = 8, shapes: Any = None, count: int = 2) -> Plan:
    where = sites(layers, shapes or {"q_proj": (64, 64)})
    return prepare(write_recipe(place, write_adapters(place, count, where=where), "linear"))


def ids(plan: Plan) -> list[str]:
    return [adapter.label for adapter in plan.adapters]


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("room_for", [1, 3, 100])
def test_outstanding_bytes_stay_within_the_memory_given(room_for: int, workers: int, tmp_path: Path) -> None:
    desk = Desk(planned(tmp_path, 12), seconds=0.0005)
    limit = room_for * max(desk.cost.values())
    outcome = execute(desk.plan, desk, ids(desk.plan), Resources(workers=workers, memory=limit))
    assert len(outcome.sites) == 12
    assert desk.peak <= limit
    assert desk.peak <= outcome.peak_in_flight <= limit
    assert desk.most <= room_for
    if room_for == 3:
        assert desk.most >= 2


def test_a_site_larger_than_the_memory_given_runs_alone(tmp_path: Path) -> None:
    plan = planned(tmp_path, 6, {"q_proj": (8, 8), "wide_proj": (400, 300)})
    desk = Desk(plan)
    small = min(desk.cost.values())
    execute(desk.plan, desk, ids(plan), Resources(workers=3, memory=4 * small))
    assert desk.peak == max(desk.cost.values())
    assert not desk.open


def test_reading_overlaps_merging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(planned(tmp_path, 16), seconds=0.002)
    works: list[tuple[float, float]] = []
    real = room.merge_site

    def slow(*arguments: Any) -> Any:
        start = time.perf_counter()
        time.sleep(0.008)
        works.append((start, time.perf_counter()))
        return real(*arguments)

    monkeypatch.setattr(room, "merge_site", slow)
    start = time.perf_counter()
    execute(desk.plan, desk, ids(desk.plan), Resources(workers=1))
    elapsed = time.perf_counter() - start
    shared = sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a in desk.reads for b in works)
    reading = sum(b - a for a, b in desk.reads)
    assert shared > 0.5 * reading, f"of {reading:.3f} s of reading {shared:.3f} s overlapped, {elapsed:.3f} s in all"


@pytest.mark.parametrize("stage", ["read", "merge", "write"])
def test_a_failure_in_any_stage_surfaces_and_leaves_nothing(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path / "adapter0", write_adapters(tmp_path, 2), "linear")

    def boom(*arguments: Any, **options: Any) -> Any:
        raise ArithmeticError(stage)

    target = {
        "read": ("robustmerge_kit.adapters.adapter.read_together", boom),
        "merge": ("robustmerge_kit.sites.merge_site", boom),
        "write": ("robustmerge_kit.shards.ShardWriter.write", boom),
    }[stage]
    monkeypatch.setattr(*target)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(ArithmeticError, match=stage):
        run(recipe, tmp_path / "outputs" / "out", Resources(workers=3))
    assert list((tmp_path / "outputs").iterdir()) == []
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("rmkit")] == []


# --- out of memory ----------------------------------------------------------------------------------------------------


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Sizes of the batches that were tried; those above 2 run out of memory."""
    tried: list[int] = []
    real = room.merge_site

    def merge_site(stack: Any, *rest: Any) -> Any:
        size = stack.batch[0] if stack.batch else 1
        tried.append(size)
        if size > 2:
            raise torch.OutOfMemoryError("injected")
        return real(stack, *rest)

    monkeypatch.setattr(room, "merge_site", merge_site)
    return tried  # type: ignore[return-value]


def test_out_of_memory_halves_the_batch_and_goes_on(tmp_path: Path, batches: list[int]) -> None:
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2, where=sites(8, {"q_proj": (12, 10)})), "linear")
    run(recipe, tmp_path / "whole", Resources(batch=8))
    assert batches == [8, 4, 2, 2, 4, 2, 2]
    expected = read_deltas(tmp_path / "whole")
    batches.clear()
    run(recipe, tmp_path / "single")
    assert batches == [1] * 8
    assert content(tmp_path / "single") == content(tmp_path / "whole")
    assert len(expected) == 8


def test_one_site_too_large_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def merge_site(*_: Any) -> Any:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(room, "merge_site", merge_site)
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2), "linear")
    with pytest.raises(PlanError, match=r"not enough memory to merge site model\.layers\.0\.q_proj\nhint: lower -j"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_nan_and_inf_are_found_while_streaming(half: str, dtype: torch.dtype, value: str, tmp_path: Path) -> None:
    tensors = factors(sites(), 1, dtype=dtype)
    name = f"{PREFIX}model.layers.1.up_proj.{half}.weight"
    tensors[name][1, 2] = float(value)
    adapters = [write_adapter(tmp_path / "good", dtype=dtype), write_adapter(tmp_path / "bad", tensors=tensors)]
    with pytest.raises(InputError, match=rf"bad.*{name}: holds NaN/Inf \(1 values\)"):
        run(write_recipe(tmp_path, adapters), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nan_in_a_head_is_found_too(tmp_path: Path) -> None:
    head = {"head.weight": torch.tensor([[1.0, float("nan")]])}
    adapters = [write_adapter(tmp_path / f"t{i}", i, extras=head) for i in range(2)]
    for rule in ("mean", "first", "error"):
        with pytest.raises(InputError, match=r"head\.weight: holds NaN/Inf"):
            run(write_recipe(tmp_path, adapters, extras=rule), tmp_path / "out")


def untrained(place: Path, seed: int, only: Sequence[str] = ("",)) -> Path:
    tensors = factors(sites(), seed)
    for name, value in tensors.items():
        if "lora_B" in name and any(part in name for part in only):
            value.zero_()
    return write_adapter(place, tensors=tensors)


def test_an_untrained_adapter_contributes_nothing_and_is_named(tmp_path: Path) -> None:
    adapters = [*write_adapters(tmp_path, 2), untrained(tmp_path / "untrained", 5)]
    found = merged(tmp_path, adapters, "linear")
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    assert "untrained: untrained: every B is zero, contributes nothing" in receipt["notes"]
    assert {tuple(site["zero"]) for site in receipt["sites"]} == {("untrained",)}
    deltas = [read_deltas(path) for path in adapters[:2]]
    for site in found:
        assert error(found[site], (deltas[0][site] + deltas[1][site]) / 3) < 1e-6


def test_an_adapter_that_is_zero_at_some_sites_only(tmp_path: Path) -> None:
    adapters = [*write_adapters(tmp_path, 1), untrained(tmp_path / "partly", 5, ["layers.0"])]
    merged(tmp_path, adapters, "robustmerge")
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    assert {site["site"]: site["zero"] for site in receipt["sites"]} == {
        site: ["partly"] if "layers.0" in site else [] for site in sites()
    }
    assert not any("untrained" in note for note in receipt["notes"])
    alone = merged(tmp_path, adapters[:1], "robustmerge")
    both = merged(tmp_path, adapters, "robustmerge")
    assert {site: torch.equal(alone[site], both[site]) for site in alone} == {site: "layers.0" in site for site in alone}


@pytest.mark.parametrize("method", ["linear", "robustmerge", "task_arithmetic"])
def test_all_adapters_untrained_is_an_error(method: str, tmp_path: Path) -> None:
    adapters = [untrained(tmp_path / f"t{i}", i) for i in range(2)]
    with pytest.raises(InputError, match="every adapter is untrained"):
        run(write_recipe(tmp_path, adapters, method), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_result_beyond_the_output_dtype_is_refused(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 2)
    recipe = write_recipe(tmp_path, adapters, "task_arithmetic", parameters={"gain": 1e7}, output={"dtype": "float16"})
    with pytest.raises(PlanError, match=r"site model\.layers\.0\..*: the result does not fit into float16"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
