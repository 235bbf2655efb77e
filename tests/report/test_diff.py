"""`rmkit diff`: adapters whose relation is known, models in every form, what is refused, exit codes."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from small_adapters import PREFIX, factors, read_deltas, run, sites, write_adapter, write_adapters, write_recipe
from torch import Tensor

from robustmerge_kit.cli.diff import diff as command
from robustmerge_kit.errors import InputError
from robustmerge_kit.report import difference
from robustmerge_kit.report.difference import dense

WEIGHTS = "adapter_model.safetensors"


def show(*arguments: Path | str | float) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments), "-q"], standalone_mode=False, catch_exceptions=False)


def document(*arguments: Path | str | float) -> dict[str, Any]:
    return json.loads(show(*arguments, "--json").stdout)


def pair(place: Path, **second: Any) -> tuple[Path, Path]:
    return write_adapter(place / "a"), write_adapter(place / "b", **second)


# --- adapters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "error", "status"),
    [
        ({}, 0.0, "equal"),
        ({"alpha": 16.0}, 1.0, "different"),
        ({"alpha": -8.0}, 2.0, "different"),
        ({"use_rslora": True}, 1.0, "different"),
        ({"alpha": 8.0 * 1.001}, 0.001, "different"),
        ({"file": "adapter_model.bin"}, 0.0, "equal"),
    ],
)
def test_known_relations(tmp_path: Path, second: dict[str, Any], error: float, status: str) -> None:
    found = document(*pair(tmp_path, **second))
    assert [site["status"] for site in found["sites"]] == [status] * 4
    for site in (*found["sites"], found["totals"]["sites"]):
        assert site["relative_error"] == pytest.approx(error, rel=1e-12)
        assert site["norm_difference"] == pytest.approx(error * site["norm_a"], rel=1e-12)
    assert {site["rank_difference"] for site in found["sites"]} == {0 if status == "equal" else 4}


def test_the_figures_are_those_of_dense_float64(tmp_path: Path) -> None:
    a, b = pair(tmp_path, seed=1, r=6, dtype=torch.bfloat16)
    found = {site["site"]: site for site in document(a, b)["sites"]}
    left, right = read_deltas(a), read_deltas(b)
    for name in sites():
        x, y = left[name], right[name]
        assert found[name]["relative_error"] == pytest.approx(float((y - x).norm() / x.norm()), rel=1e-12)
        assert found[name]["cosine"] == pytest.approx(float((x * y).sum() / x.norm() / y.norm()), rel=1e-9)
        assert found[name]["norm_ratio"] == pytest.approx(float(y.norm() / x.norm()), rel=1e-12)
        assert [found[name][f"rank_{key}"] for key in ("a", "b", "difference")] == [4, 6, 10]


def test_a_merge_against_its_only_input_differs_by_its_rounding(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a")
    run(write_recipe(tmp_path, [adapter]), tmp_path / "out")
    found = document(adapter, tmp_path / "out")
    assert found["totals"]["sites"]["relative_error"] < 2e-7
    assert show(adapter, tmp_path / "out", "--tolerance", 1e-6).return_value == 0


def test_sites_that_one_side_lacks_count_as_a_difference(tmp_path: Path) -> None:
    a, b = pair(tmp_path, where=sites(1))
    for one, other, status, error in ((a, b, "only in A", 1.0), (b, a, "only in B", None)):
        found = document(one, other, "--tolerance", 1e9)
        assert [site["status"] for site in found["sites"]] == [status] * 2 + ["equal"] * 2
        assert found["sites"][0]["relative_error"] == error
        assert found["within"] is False
        assert found["beyond"] == ["model.layers.1.q_proj", "model.layers.1.up_proj"]
    norms = {name: float(delta.norm()) for name, delta in read_deltas(a).items()}
    lost, whole = math.hypot(*(norms[site["site"]] for site in found["sites"][:2])), math.hypot(*norms.values())
    assert document(a, b)["totals"]["sites"]["relative_error"] == pytest.approx(lost / whole)
    assert show(a, b).return_value == 0
    assert "4 sites: 2 equal, 2 only in A" in show(a, b).stdout


def test_tensors_beside_the_factors_are_compared(tmp_path: Path) -> None:
    head, bias = torch.randn(2, 5), torch.ones(3)
    a = write_adapter(tmp_path / "a", extras={"score.weight": head, "head.bias": bias, "gone.weight": torch.ones(2)})
    b = write_adapter(tmp_path / "b", extras={"score.weight": 1.5 * head, "head.bias": bias, "new.weight": torch.ones(2)})
    c = write_adapter(tmp_path / "c", extras={"score.weight": head[:, :4].contiguous(), "head.bias": bias.bfloat16()})
    found = {each["tensor"]: each for each in document(a, b)["tensors"]}
    assert {name: each["status"] for name, each in found.items()} == {
        "score.weight": "different",
        "head.bias": "equal",
        "gone.weight": "only in A",
        "new.weight": "only in B",
    }
    assert found["score.weight"]["relative_error"] == pytest.approx(0.5)
    assert document(a, b)["totals"]["sites"]["different"] == 0
    found = {each["tensor"]: each for each in document(a, c)["tensors"]}
    assert found["score.weight"]["status"] == "other shape"
    assert (found["head.bias"]["status"], found["head.bias"]["b"]["dtype"]) == ("equal", "bfloat16")
    assert "2 x 5 / 2 x 4" in show(a, c).stdout


def test_names_with_another_prefix_are_brought_together(tmp_path: Path) -> None:
    moved = {name.replace("model.layers", "model.language_model.layers"): value for name, value in factors(sites(), 0).items()}
    a, b = pair(
        tmp_path, tensors=moved, where={name.replace("model.", "model.language_model."): s for name, s in sites().items()}
    )
    found = document(a, b)
    assert found["totals"]["sites"]["equal"] == 4
    assert any("model.language_model." in note for note in found["notes"])


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    names = [str(path) for path in pair(tmp_path, seed=3, r=2)]
    assert difference.diff(*names, tmp_path, workers=1) == difference.diff(*names, tmp_path, workers=3)


def test_magnitudes_of_dora_are_compared_as_tensors(tmp_path: Path) -> None:
    sizes = {f"{PREFIX}{name}.lora_magnitude_vector": torch.ones(shape[0]) for name, shape in sites().items()}
    stored = factors(sites(), 0)
    a, b = pair(tmp_path, tensors={**stored, **sizes}, use_dora=True)
    found = document(a, b)
    assert {each["status"] for each in found["sites"]} == {"equal"}
    assert {each["tensor"]: each["status"] for each in found["tensors"]} == {
        f"{name}.magnitude": "only in B" for name in sites()
    }
    sizes[f"{PREFIX}model.layers.0.q_proj.lora_magnitude_vector"] = torch.full((12,), 1.5)
    write_adapter(a, tensors={**stored, **sizes}, use_dora=True)
    found = document(b, a, "--tolerance", 0.4)
    assert found["beyond"] == ["model.layers.0.q_proj.magnitude"]
    assert found["tensors"][0]["relative_error"] == pytest.approx(0.5)


def test_fused_experts(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)
    names = [f"{PREFIX}m.experts.lora_{letter}.weight" for letter in "AB"]
    tensors = dict(zip(names, (torch.randn(6, 4, generator=draw), torch.randn(5, 6, generator=draw)), strict=True))
    where = {"m.experts": (5, 4)}
    options: dict[str, Any] = {"where": where, "r": 2, "target_modules": [], "target_parameters": ["experts.w"]}
    a = write_adapter(tmp_path / "a", tensors=tensors, **options)
    changed = tensors[names[1]].clone()
    changed[:, [1, 4]] = 0  # both columns of the second of three experts
    b = write_adapter(tmp_path / "b", tensors={**tensors, names[1]: changed}, **options)
    (found,) = document(a, b)["sites"]
    deltas = [tensors[names[1]][:, e::3].double() @ tensors[names[0]][2 * e : 2 * e + 2].double() for e in range(3)]
    assert found["shape"] == [3, 5, 4]
    assert found["relative_error"] == pytest.approx(float(deltas[1].norm() / torch.stack(deltas).norm()), rel=1e-6)
    assert found["rank_difference"] == 2


def test_a_modified_base_is_a_note(tmp_path: Path) -> None:
    a, b = pair(tmp_path, init_lora_weights="pissa")
    assert any("trained on a modified base" in note for note in document(a, b)["notes"])


# --- models -----------------------------------------------------------------------------------------------------------


def write_model(place: Path, tensors: dict[str, Tensor], shards: int = 1, kind: str = "safetensors") -> Path:
    place.mkdir()
    (place / "config.json").write_text("{}")
    stem = "model" if kind == "safetensors" else "pytorch_model"

    def save(part: dict[str, Tensor], name: str) -> None:
        save_file(part, place / name) if kind == "safetensors" else torch.save(part, place / name)

    if shards == 1:
        save(tensors, f"{stem}.{kind}")
        return place
    names = sorted(tensors)
    homes = {name: f"{stem}-{i % shards + 1:05}-of-{shards:05}.{kind}" for i, name in enumerate(names)}
    for home in set(homes.values()):
        save({name: tensors[name] for name in names if homes[name] == home}, home)
    (place / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    return place


def tensors_of_a_model() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(2)
    found = {f"model.layers.{i}.weight": torch.randn(8, 6, generator=draw) for i in range(3)}
    return {**found, "norm.weight": torch.ones(6), "ids": torch.arange(4), "scalar": torch.tensor(2.0)}


@pytest.mark.parametrize("piece", [7, dense.PIECE])
@pytest.mark.parametrize(("shards", "kind"), [(1, "safetensors"), (2, "safetensors"), (1, "bin"), (3, "bin")])
def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int, kind: str, piece: int) -> None:
    monkeypatch.setattr(dense, "PIECE", piece)
    one = tensors_of_a_model()
    other = {name: value.clone() for name, value in one.items() if name != "ids"}
    other["model.layers.1.weight"][7, 5] += 0.5
    other["model.layers.2.weight"] *= -1
    other["norm.weight"] = one["norm.weight"].bfloat16()
    other["new"] = torch.zeros(1)
    a, b = write_model(tmp_path / "a", one), write_model(tmp_path / "b", other, shards, kind)
    found = document(a, b)
    assert found["kind"] == "models"
    assert found["sites"] == []
    each = {row["tensor"]: row for row in found["tensors"]}
    assert {name: row["status"] for name, row in each.items()} == {
        "ids": "only in A",
        "new": "only in B",
        "model.layers.0.weight": "equal",
        "model.layers.1.weight": "different",
        "model.layers.2.weight": "different",
        "norm.weight": "equal",
        "scalar": "equal",
    }
    x = one["model.layers.1.weight"].double()
    assert each["model.layers.1.weight"]["relative_error"] == pytest.approx(0.5 / float(x.norm()), rel=1e-6)
    assert each["model.layers.1.weight"]["norm_a"] == pytest.approx(float(x.norm()), rel=1e-12)
    assert (each["model.layers.2.weight"]["relative_error"], each["model.layers.2.weight"]["cosine"]) == pytest.approx((2, -1))
    assert [row["tensor"] for row in found["tensors"][:3]] == ["ids", "new", "model.layers.2.weight"]


def test_equal_bytes_need_no_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {**tensors_of_a_model(), "mask": torch.full((3,), math.nan)}
    a, b = write_model(tmp_path / "a", tensors), write_model(tmp_path / "b", tensors, 2)
    monkeypatch.setattr(dense, "compare_values", lambda x, y: pytest.fail("arithmetic"))
    found = document(a, b, "--tolerance", 0)
    assert found["within"] is True
    assert found["totals"]["tensors"]["equal"] == 7


def test_ranks_of_models_are_counted_when_asked_for(tmp_path: Path) -> None:
    one = tensors_of_a_model()
    name = "model.layers.1.weight"
    changed = one[name] + torch.outer(torch.arange(8.0), torch.ones(6))
    a, b = write_model(tmp_path / "a", one), write_model(tmp_path / "b", {**one, name: changed, "scalar": torch.tensor(3.0)})
    counted = {each["tensor"]: each["rank_difference"] for each in document(a, b, "--ranks")["tensors"]}
    assert {key: rank for key, rank in counted.items() if rank is not None} == {name: 1}
    assert {each["rank_difference"] for each in document(a, b)["tensors"]} == {None}
    (line,) = (line for line in show(a, b, "--ranks").stdout.splitlines() if name in line)
    assert line.split()[-1] == "1"


def test_nan_in_one_model_is_beyond_any_tolerance(tmp_path: Path) -> None:
    one = tensors_of_a_model()
    a = write_model(tmp_path / "a", one)
    bad = one["norm.weight"].clone()
    bad[2] = math.nan
    b = write_model(tmp_path / "b", {**one, "norm.weight": bad})
    result = show(a, b, "--tolerance", 1e300)
    assert result.return_value == 1
    assert "1 not finite" in result.stdout


def test_values_whose_squares_are_too_large_are_beyond_any_tolerance(tmp_path: Path) -> None:
    a, b = (write_model(tmp_path / f"{x}", {"w": torch.full((3,), x, dtype=torch.float64)}) for x in (1e200, 2e200))
    found = document(a, b, "--tolerance", 10)
    assert (found["within"], found["tensors"][0]["relative_error"], found["tensors"][0]["norm_a"]) == (False, None, None)


# --- answers and refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tolerance", "code"), [((), 0), (("--tolerance", 0.0009), 1), (("--tolerance", 0.0011), 0), (("--tolerance", 0), 1)]
)
def test_the_tolerance_sets_the_exit_code(tmp_path: Path, tolerance: tuple[Any, ...], code: int) -> None:
    a, b = pair(tmp_path, alpha=8.0 * 1.001)
    assert show(a, b, *tolerance).return_value == code
    assert document(a, b, *tolerance)["within"] is (None if not tolerance else code == 0)


def test_every_site_must_keep_the_tolerance_however_small(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    tensors = load_file(a / WEIGHTS)
    name = f"{PREFIX}model.layers.0.q_proj.lora_B.weight"
    save_file({**tensors, name: 1e-6 * tensors[name]}, a / WEIGHTS)
    save_file({**tensors, name: 2e-6 * tensors[name]}, b / WEIGHTS)
    assert document(a, b)["totals"]["sites"]["relative_error"] < 1e-5
    result = show(a, b, "--tolerance", 0.5)
    assert result.return_value == 1
    assert "beyond the tolerance 0.5: 1 of 4 sites, first model.layers.0.q_proj" in result.stdout


@pytest.mark.parametrize("value", ["-1", "nan", "much"])
def test_a_tolerance_is_a_number_that_is_not_negative(tmp_path: Path, value: str) -> None:
    with pytest.raises(click.BadParameter):
        show("a", "b", "--tolerance", value)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"where": {"encoder.a": (3, 3)}}, "inputs share no module"),
        ({"where": sites(2, {"q_proj": (12, 11)})}, r"module model.layers.0.q_proj: \[out, in\] is"),
        ({"tensors": {n: torch.full_like(v, math.nan) for n, v in factors(sites(), 0).items()}}, "holds NaN/Inf"),
        ({"dtype": torch.float64, "tensors": {n: 1e80 * v.double() for n, v in factors(sites(), 0).items()}}, "too large"),
    ],
)
def test_what_cannot_be_compared_says_so(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        show(*pair(tmp_path, **second))
    assert "adapter entry" not in str(caught.value)


def test_help_and_errors_need_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from robustmerge_kit.report import difference; from robustmerge_kit.errors import RmkitError\n"
        "from pathlib import Path\n"
        "try: difference.diff('./absent', './gone', Path('.'))\n"
        "except RmkitError: pass\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_adapters(real_inputs: Path) -> None:
    place = real_inputs / "adapters"
    run_of = "zmousa__llm-lab__asafaya--bert-mini-arabic-lora-text-classification--checkpoint-"
    near = document(place / f"{run_of}82250", place / f"{run_of}117500")["totals"]["sites"]
    far = document(place / f"{run_of}11750", place / f"{run_of}117500")["totals"]["sites"]
    assert near["relative_error"] < far["relative_error"]
    assert near["cosine"] > 0.9 > far["cosine"] > 0
    copy = document(place / f"{run_of}11750", place / "derived__null-base__bert-mini-arabic", "--tolerance", 0)
    assert copy["within"] is True
    names = ("legal", "medical")
    tasks = document(*(place / f"parikshit-06__domain-skeleton-gpt2__adapters--{name}" for name in names))
    assert all(site["rank_difference"] == 16 for site in tasks["sites"])


def test_inputs_are_named_apart(tmp_path: Path) -> None:
    a, _ = write_adapters(tmp_path / "x", 2)
    b, _ = write_adapters(tmp_path / "y", 2)
    found = document(a, b)
    assert (found["a"]["name"], found["b"]["name"]) == (str(a), str(b))
