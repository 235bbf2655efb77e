"""`rmkit inspect`: what it tells of adapters whose contents are known, of broken ones, and of real ones."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from small_adapters import PREFIX, factors, sites, write_adapter, write_adapters

from robustmerge_kit.cli.inspect import inspect as command
from robustmerge_kit.report import AdapterReport, inspect

WEIGHTS = "adapter_model.safetensors"


def show(*arguments: Path | str) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments), "-q"], standalone_mode=False, catch_exceptions=False)


def document(*arguments: Path | str) -> dict[str, Any]:
    return json.loads(show(*arguments, "--json").stdout)


def one(place: Path, **options: Any) -> AdapterReport:
    return inspect([str(write_adapter(place / "it", **options))], place, workers=1).adapters[0]


def edit(folder: Path, name: str, value: torch.Tensor) -> None:
    tensors = load_file(folder / WEIGHTS)
    assert name in tensors
    save_file({**tensors, name: value}, folder / WEIGHTS)


# --- contents ---------------------------------------------------------------------------------------------------------


def test_a_plain_adapter(tmp_path: Path) -> None:
    found = one(tmp_path, r=4, alpha=8.0, dtype=torch.bfloat16, extras={"score.weight": torch.zeros(2, 5)})
    assert found.error is None
    assert (found.layout, found.base, found.ranks, found.alphas, found.scales) == ("peft", "org/tiny", (4,), (8.0,), (2.0,))
    assert found.targets == {"q_proj": 2, "up_proj": 2}
    assert found.dtypes == ("bfloat16",)
    assert found.parameters == 4 * 2 * (12 + 10 + 14 + 10)
    assert [(e.name, e.kind, e.spec.shape) for e in found.extras] == [("score.weight", "saved", (2, 5))]
    assert found.warnings == ()
    tensors = {name: value.double() for name, value in factors(sites(), 0, 4, torch.bfloat16).items()}
    deltas = [2 * tensors[f"{PREFIX}{s}.lora_B.weight"] @ tensors[f"{PREFIX}{s}.lora_A.weight"] for s in sites()]
    spectra = [torch.linalg.svdvals(delta)[:4] for delta in deltas]
    assert found.totals is not None
    assert found.totals.singular is not None
    assert found.totals.norm == pytest.approx(math.sqrt(sum(float(delta.square().sum()) for delta in deltas)), rel=1e-9)
    assert found.totals.singular.most == pytest.approx(max(float(s[0]) for s in spectra), rel=1e-6)
    assert found.totals.singular.least == pytest.approx(min(float(s[-1]) for s in spectra), rel=1e-6)
    assert found.totals.condition == pytest.approx(found.totals.singular.most / found.totals.singular.least)
    assert [site.numbers and len(site.numbers.singular_values) for site in found.sites] == [4] * 4


@pytest.mark.parametrize(
    ("options", "ranks", "alphas", "scales", "warning"),
    [
        ({"use_rslora": True}, (4,), (8.0,), (4.0,), "rsLoRA"),
        ({"alpha_pattern": {"q_proj": 2}}, (4,), (2.0, 8.0), (0.5, 2.0), "alpha_pattern (q_proj: 2)"),
        ({"init_lora_weights": "eva"}, (4,), (8.0,), (2.0,), "init scheme: eva"),
        ({"init_lora_weights": "pissa_niter_4"}, (4,), (8.0,), (2.0,), "a merge refuses it: trained on a modified base"),
        ({"init_lora_weights": "pissa"}, (4,), (8.0,), (2.0,), "a merge needs base_model; figures are of B A alone"),
        ({"new_key": 1, "peft_version": "9.9"}, (4,), (8.0,), (2.0,), "written by PEFT 9.9, keys ignored: new_key"),
        ({"lora_alpha": 0}, (4,), (0.0,), (0.0,), "alpha is 0"),
        ({"base_model_name_or_path": None}, (4,), (8.0,), (2.0,), "base_model_name_or_path is empty"),
        ({"r": 6}, (4,), (8.0,), (2.0,), "4 modules have another rank than the configuration says"),
    ],
)
def test_settings_that_need_a_remark(
    tmp_path: Path, options: dict[str, Any], ranks: Any, alphas: Any, scales: Any, warning: str
) -> None:
    folder = write_adapter(tmp_path / "it")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **options}))
    found = inspect(["it"], tmp_path, workers=1).adapters[0]
    assert (found.ranks, found.alphas, found.scales) == (ranks, alphas, scales)
    assert any(warning in each for each in found.warnings), found.warnings


def test_targets_are_named_as_shortly_as_they_can_be_told_apart(tmp_path: Path) -> None:
    shapes = {
        "attn.c_proj": (4, 4),
        "mlp.c_proj": (4, 4),
        "attn.c_attn": (4, 4),
        "experts.0.up": (4, 4),
        "experts.1.up": (4, 4),
    }
    found = one(tmp_path, where=sites(3, shapes))
    assert found.targets == {"attn.c_proj": 3, "mlp.c_proj": 3, "c_attn": 3, "up": 6}


def test_an_untrained_adapter_says_so(tmp_path: Path) -> None:
    tensors = {n: v if "lora_A" in n else torch.zeros_like(v) for n, v in factors(sites(), 0).items()}
    found = one(tmp_path, tensors=tensors)
    assert found.totals is not None
    assert found.totals.norm == 0
    assert found.totals.zero_columns_b == 16
    assert found.warnings == ("untrained: every B is zero, contributes nothing",)
    assert found.usable


def test_magnitudes_of_dora_are_told_and_looked_at(tmp_path: Path) -> None:
    sizes = {f"{PREFIX}{name}.lora_magnitude_vector": torch.ones(shape[0]) for name, shape in sites().items()}
    found = one(tmp_path, tensors={**factors(sites(), 0), **sizes}, use_dora=True)
    assert found.warnings == ("DoRA: 4 sites have a magnitude too, a merge needs base_model; figures are of B A alone",)
    assert found.usable
    name = f"{PREFIX}model.layers.1.q_proj.lora_magnitude_vector"
    edit(tmp_path / "it", name, torch.full((12,), math.inf))
    found = inspect(["it"], tmp_path, workers=1).adapters[0]
    assert not found.usable
    assert {key: counts.inf for key, counts in found.not_finite.items()} == {name: 12}


def test_fused_experts_are_measured_together(tmp_path: Path) -> None:
    a, b = torch.randn(6, 4), torch.randn(5, 6)
    b[:, [1, 4]] = 0  # both columns of the second of three experts
    tensors = {f"{PREFIX}m.experts.lora_{letter}.weight": value for letter, value in (("A", a), ("B", b))}
    found = one(tmp_path, where={"m.experts": (5, 4)}, r=2, tensors=tensors, target_modules=[], target_parameters=["experts.w"])
    (site,) = found.sites
    assert site.numbers is not None
    dense = [4 * b[:, e::3].double() @ a[2 * e : 2 * e + 2].double() for e in range(3)]
    spectrum = sorted((float(s) for delta in (dense[0], dense[2]) for s in torch.linalg.svdvals(delta)[:2]), reverse=True)
    assert site.numbers.norm == pytest.approx(float(torch.stack(dense).norm()), rel=1e-6)
    assert site.numbers.singular_values == pytest.approx(spectrum, rel=1e-6)
    assert (site.rank, site.experts, site.numbers.zero_columns_b, site.numbers.dead) == (2, 3, 2, 2)
    assert "3 x 5 x 4" in show("--sites", tmp_path / "it").stdout


def test_a_zero_site_is_named(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "it")
    edit(folder, f"{PREFIX}model.layers.1.up_proj.lora_A.weight", torch.zeros(4, 10))
    found = inspect(["it"], tmp_path, workers=1).adapters[0]
    assert found.warnings == ("1 of 4 sites have a zero update (first model.layers.1.up_proj)",)
    assert found.totals is not None
    assert (found.totals.zero_rows_a, found.totals.zero_columns_b, found.totals.zero_sites) == (4, 0, 1)
    assert found.totals.effective_rank is not None
    assert found.totals.effective_rank.least > 1


def test_nothing_depends_on_the_number_of_workers(tmp_path: Path) -> None:
    names = [str(path) for path in write_adapters(tmp_path, 3)]
    assert inspect(names, tmp_path, workers=1) == inspect(names, tmp_path, workers=3)


# --- problems ---------------------------------------------------------------------------------------------------------


def test_nan_and_infinity_are_shown_not_raised(tmp_path: Path) -> None:
    good, bad = write_adapters(tmp_path, 2, extras={"score.weight": torch.zeros(2, 5)})
    name = f"{PREFIX}model.layers.0.q_proj.lora_B.weight"
    b = load_file(bad / WEIGHTS)[name]
    b[0, 0], b[1, 0], b[2, 1] = math.nan, math.inf, math.inf
    edit(bad, name, b)
    edit(bad, f"{PREFIX}score.weight", torch.full((2, 5), math.nan))
    result = show(good, bad)
    assert result.return_value == 3
    assert f"tensor {name} holds 1 NaN and 2 infinite values; a merge refuses it" in " ".join(result.stdout.split())
    assert "leave out 1 of 4 sites" in " ".join(result.stdout.split())
    found = document(good, bad)["adapters"]
    assert [each["usable"] for each in found] == [True, False]
    assert found[1]["not_finite"] == {name: {"nan": 1, "inf": 2}, f"{PREFIX}score.weight": {"nan": 10, "inf": 0}}
    assert found[1]["numbers"]["norm"] > 0
    assert "not finite" in show("--sites", bad).stdout


def test_a_broken_adapter_does_not_hide_the_others(tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good")
    cut = write_adapter(tmp_path / "cut")
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:-8])
    result = show(cut, tmp_path / "absent", good)
    assert result.return_value == 3
    rows = result.stdout.splitlines()[:4]
    assert ["cannot be read" in row for row in rows] == [False, True, True, False]
    assert "error     " in result.stdout
    # Long paths wrap, wherever the temporary folder happens to lie.
    words = " ".join(result.stdout.split())
    assert "truncated" in words
    assert "no such folder" in words
    found = document(cut, tmp_path / "absent", good)["adapters"]
    assert [each["error"] is None for each in found] == [False, False, True]
    assert set(found[0]["error"]) == {"where", "what", "hint"}
    assert found[2]["numbers"]["norm"] > 0


def test_a_file_that_shrinks_meanwhile_is_an_error_of_its_adapter(tmp_path: Path) -> None:
    first, second = write_adapters(tmp_path, 2)

    def shrink(sites: int) -> None:
        (first / WEIGHTS).write_bytes((first / WEIGHTS).read_bytes()[:700])

    found = inspect([str(first), str(second)], tmp_path, workers=1, planned=shrink).adapters
    assert found[0].error is not None
    assert "too early" in found[0].error.what
    assert found[1].totals is not None


@pytest.mark.parametrize(
    ("change", "remark"),
    [
        ({"base_model_name_or_path": "org/other"}, "the adapters name different bases"),
        ({"where": sites(1)}, "of 4 sites, adapter1 lacks 2"),
        ({"where": {"encoder.a": (3, 3)}}, "these do not merge: inputs share no module"),
        ({"where": sites(2, {"q_proj": (12, 11)})}, "these do not merge: module model.layers.0.q_proj"),
    ],
)
def test_what_adapters_are_to_each_other(tmp_path: Path, change: dict[str, Any], remark: str) -> None:
    write_adapter(tmp_path / "adapter0")
    write_adapter(tmp_path / "adapter1", 1, **change)
    found = document(tmp_path / "adapter0", tmp_path / "adapter1")
    assert any(remark in each for each in found["together"]), found["together"]
    assert remark in " ".join(show(tmp_path / "adapter0", tmp_path / "adapter1").stdout.split())
    assert document(tmp_path / "adapter0")["together"] == []


# --- forms ------------------------------------------------------------------------------------------------------------


def test_the_json_document(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "it", extras={"score.weight": torch.zeros(2, 5)})
    found = document(folder)
    assert set(found) == {"adapters", "together"}
    each = found["adapters"][0]
    assert {key: each[key] for key in ("adapter", "name", "error", "usable", "format", "base_model", "ranks", "alphas")} == {
        "adapter": str(folder),
        "name": "it",
        "error": None,
        "usable": True,
        "format": "peft",
        "base_model": "org/tiny",
        "ranks": [4],
        "alphas": [8.0],
    }
    assert each["extras"] == [{"name": "score.weight", "kind": "saved", "shape": [2, 5], "dtype": "float32", "bytes": 40}]
    assert set(each["numbers"]) == {
        "norm",
        "effective_rank",
        "singular_values",
        "zero_rows_a",
        "zero_columns_b",
        "dead",
        "zero_sites",
        "gauge",
    }
    assert set(each["numbers"]["singular_values"]) == {"least", "median", "most", "condition"}
    assert "each_site" not in each
    listed = document(folder, "--sites")["adapters"][0]["each_site"]
    assert [site["site"] for site in listed] == list(sites())
    assert sum(site["numbers"]["norm"] ** 2 for site in listed) == pytest.approx(each["numbers"]["norm"] ** 2)
    assert document(folder, "--headers")["adapters"][0]["numbers"] is None


def test_the_table_is_aligned_and_at_most_100_columns_wide(tmp_path: Path) -> None:
    names = [write_adapter(tmp_path / f"{'a_very_long_name_of_an_adapter_' * 3}{i}", i, r=2 + i) for i in range(12)]
    lines = show(*names, "--sites").stdout.splitlines()
    assert all(len(line) <= 100 for line in lines if str(tmp_path) not in line)
    head, *rows = lines[:13]
    end = head.index("sites") + len("sites")
    assert [row[:end].rpartition(" ")[2] for row in rows] == ["4"] * 12
    assert [row.split()[0] for row in rows] == [str(i) for i in range(1, 13)]
    assert all(row.split()[1].endswith(f"_{i}") for i, row in enumerate(rows))
    assert sum("q_proj" in line and " 12 x 10 " in line for line in lines) == 24


def test_headers_alone_need_neither_weights_nor_torch(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "it", 0)
    edit(folder, f"{PREFIX}model.layers.0.q_proj.lora_B.weight", torch.full((12, 4), math.nan))
    code = (
        "import sys; from pathlib import Path; from robustmerge_kit.report import as_text, inspect\n"
        f"found = inspect([{str(folder)!r}], Path('.'), weights=False)\n"
        "assert 'torch' not in sys.modules\n"
        "print('\\n'.join(as_text(found)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "norm" not in done.stdout
    assert "it  " in done.stdout
    assert show(folder, "--headers").return_value == 0
    assert show(folder).return_value == 3


def test_a_reference_to_the_hub_is_found_in_the_cache(tmp_path: Path) -> None:
    commit = "c" * 40
    store = tmp_path / "cache" / "models--org--lora"
    write_adapter(store / "snapshots" / commit)
    (store / "refs").mkdir()
    (store / "refs" / "main").write_text(commit)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "robustmerge_kit", "inspect", "org/lora", "org/absent", "--json", "--headers"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)["adapters"]
    assert (found[0]["repository"], found[0]["revision"], found[0]["sites"]) == ("org/lora", commit, 4)
    assert "not in the local cache" in found[1]["error"]["what"]


def test_real_adapters(real_inputs: Path) -> None:
    place = real_inputs / "adapters"
    names = sorted(path.name for path in place.iterdir() if path.is_dir())
    found = {report.label: report for report in inspect(names, place).adapters}
    broken = {name for name, report in found.items() if report.error}
    assert {name.partition("__")[0] for name in broken} == {
        "Hirvita6",
        "JamesQFreeman",
        "Umar-khan4260",
        "Wiscarce",
        "elisagdelope",
    }
    assert all(report.usable for name, report in found.items() if name not in broken)
    untrained = found["MathieuNlp__Sam_LoRA__lora__at-9c02871"]
    assert untrained.targets == {"numbered": 24}
    assert untrained.warnings[-1] == "untrained: every B is zero, contributes nothing"
    legal = found["parikshit-06__domain-skeleton-gpt2__adapters--legal"]
    assert legal.targets == {"c_attn": 12, "attn.c_proj": 12, "mlp.c_proj": 12}
    tensors = load_file(place / legal.label / WEIGHTS)
    dense = 0.0
    for name, a in tensors.items():
        if "lora_A" in name:
            delta = 2 * tensors[name.replace("lora_A", "lora_B")].double() @ a.double()
            dense += float(delta.square().sum())
    assert legal.totals is not None
    assert legal.totals.norm == pytest.approx(math.sqrt(dense), rel=1e-9)
