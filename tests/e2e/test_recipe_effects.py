"""Every setting of a recipe changes the sites it names, by the amount it says, and no others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from naive import ties
from small_adapters import entry, error, merged, read_deltas, run, sites, write_adapter, write_adapters, write_recipe
from torch import Tensor

from robustmerge_kit import compress
from robustmerge_kit import sites as site_reading
from robustmerge_kit.errors import PlanError, RecipeError, RmkitError

LAYERS = 3


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return write_adapters(tmp_path, 2, where=sites(LAYERS))


def weighted(adapters: list[Path], weight: Any) -> dict[str, Tensor]:
    """sum_t weight(t, site) D_t, the oracle of task_arithmetic."""
    deltas = [read_deltas(folder) for folder in adapters]
    return {site: sum(weight(t, site) * d[site] for t, d in enumerate(deltas)) for site in deltas[0]}  # type: ignore[misc]


def layer(site: str) -> int:
    return int(site.split(".")[2])


WEIGHTS: dict[str, tuple[Any, Any]] = {
    "scalar": (0.5, lambda site: 0.5),
    "negative": (-0.75, lambda site: -0.75),
    "gradient": ([0.0, 1.0], lambda site: layer(site) / (LAYERS - 1)),
    "gradient of three": ([1.0, 0.2, 0.6], lambda site: (1.0, 0.2, 0.6)[layer(site)]),
    "filters": (
        [{"filter": "up_proj", "value": 0.25}, {"value": 2.0}],
        lambda site: 0.25 if "up_proj" in site else 2.0,
    ),
    "gradient in a filter": (
        [{"filter": "q_proj", "value": [1.0, 0.0]}, {"value": 0.5}],
        lambda site: 1 - layer(site) / (LAYERS - 1) if "q_proj" in site else 0.5,
    ),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_by_site(case: str, two: list[Path], tmp_path: Path) -> None:
    value, at = WEIGHTS[case]
    found = merged(tmp_path, [entry(two[0], value), two[1]], "task_arithmetic")
    expected = weighted(two, lambda t, site: at(site) if t == 0 else 1.0)
    assert {site: error(found[site], expected[site]) < 1e-6 for site in expected} == dict.fromkeys(expected, True)


@pytest.mark.parametrize("case", WEIGHTS)
def test_parameters_of_the_method_by_site(case: str, two: list[Path], tmp_path: Path) -> None:
    value, at = WEIGHTS[case]
    found = merged(tmp_path, two, "task_arithmetic", parameters={"gain": value})
    expected = weighted(two, lambda t, site: at(site))
    assert {site: float((found[site] - expected[site]).norm()) < 1e-6 for site in expected} == dict.fromkeys(expected, True)


def test_weight_0_is_the_same_as_leaving_the_adapter_out(two: list[Path], tmp_path: Path) -> None:
    third = write_adapter(tmp_path / "third", 9, where=sites(LAYERS), r=7)
    without = merged(tmp_path, two, "linear")
    found = merged(tmp_path, [*two, entry(third, 0.0)], "linear")
    assert all(torch.equal(found[site], without[site]) for site in without)
    with pytest.raises(PlanError, match="every weight is 0"):
        merged(tmp_path, [entry(path, 0.0) for path in two])


def test_weight_0_in_part_of_the_sites(two: list[Path], tmp_path: Path) -> None:
    found = merged(tmp_path, [entry(two[0], [{"filter": "up_proj", "value": 0.0}, {"value": 1.0}]), two[1]], "linear")
    own = [read_deltas(folder) for folder in two]
    for site in found:
        expected = own[1][site] if "up_proj" in site else (own[0][site] + own[1][site]) / 2
        assert error(found[site], expected) < 1e-6


def test_overrides_change_method_and_parameters_of_their_sites_and_the_first_wins(two: list[Path], tmp_path: Path) -> None:
    overrides = [
        {"match": "*.layers.1.*", "merge_method": "linear", "parameters": {"gain": 3.0}},
        {"match": "*.layers.[12].q_proj", "parameters": {"gain": 5.0}},
    ]
    found = merged(tmp_path, two, "task_arithmetic", parameters={"gain": 0.5}, overrides=overrides)
    plain = weighted(two, lambda t, site: 1.0)
    for site, delta in plain.items():
        factor = 3.0 / 2 if ".1." in site else 5.0 if site.endswith("2.q_proj") else 0.5
        assert error(found[site], factor * delta) < 1e-6, site
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    assert {site["site"]: site["method"] for site in receipt["sites"]} == {
        site: "linear" if ".1." in site else "task_arithmetic" for site in plain
    }


def test_override_beats_adapter_beats_recipe(two: list[Path], tmp_path: Path) -> None:
    overrides = [{"match": "*.layers.0.*", "parameters": {"weight": 7.0}}]
    found = merged(tmp_path, [entry(two[0], 3.0), two[1]], "task_arithmetic", parameters={"weight": 2.0}, overrides=overrides)
    expected = weighted(two, lambda t, site: 7.0 if ".0." in site else (3.0, 2.0)[t])
    assert all(error(found[site], expected[site]) < 1e-6 for site in expected)


RANKS: dict[str, tuple[Any, int]] = {
    "auto": ("auto", 8),
    "sum": ("sum", 8),
    "max": ("max", 4),
    "number": (3, 3),
    "wide": (20, 20),
}


@pytest.mark.parametrize("case", RANKS)
def test_output_rank(case: str, two: list[Path], tmp_path: Path) -> None:
    rule, rank = RANKS[case]
    found = merged(tmp_path, two, "task_arithmetic", output={"rank": rule})
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    total = retained = 0.0
    for site, delta in weighted(two, lambda t, site: 1.0).items():
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
        assert error(found[site], (u[:, :rank] * s[:rank]) @ vt[:rank]) < 1e-5
        total, retained = total + float(s.square().sum()), retained + float(s[:rank].square().sum())
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    assert receipt["totals"]["retained_energy"] == pytest.approx(retained / total, abs=1e-6)
    assert receipt["output"]["rank"] == rank


def test_ranks_that_depend_on_the_data(two: list[Path], tmp_path: Path) -> None:
    target = 0.8
    found = merged(tmp_path, two, "task_arithmetic", output={"rank": {"energy": target}})
    for site, delta in weighted(two, lambda t, site: 1.0).items():
        s = torch.linalg.svdvals(delta)
        k = int((s.square().cumsum(0) / s.square().sum() < target).sum()) + 1
        u, s, vt = torch.linalg.svd(delta, full_matrices=False)
        assert error(found[site], (u[:, :k] * s[:k]) @ vt[:k]) < 1e-5
    merged(tmp_path, two, "task_arithmetic", output={"rank": {"budget": {"average": 3}}})
    ranks = {site["site"]: site["rank"] for site in json.loads((tmp_path / "out" / "rmkit.json").read_text())["sites"]}
    assert 2.5 < sum(ranks.values()) / len(ranks) <= 3


@pytest.mark.parametrize("route", ["exact", "range finder"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.97, 1.0])
def test_ranks_by_energy_of_dense_deltas_are_those_of_their_svd(
    share: float, route: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trimmed deltas of rank 8 together have rank 30: the energy is that of all directions."""
    monkeypatch.setattr(compress, "EXACT_SIDE", 2048 if route == "exact" else 1)
    adapters = write_adapters(tmp_path, 2, where=sites(2, {"q_proj": (40, 30), "up_proj": (30, 50)}))
    output = {"rank": {"energy": share}, "dtype": "float32"}
    found = merged(tmp_path, adapters, "ties", parameters={"density": 0.3}, output=output)
    ranks = {site["site"]: site["rank"] for site in json.loads((tmp_path / "out" / "rmkit.json").read_text())["sites"]}
    deltas = [read_deltas(folder) for folder in adapters]
    for site in deltas[0]:
        dense = torch.from_numpy(ties([each[site].numpy() for each in deltas], [1.0, 1.0], None, density=0.3))
        u, s, vt = torch.linalg.svd(dense, full_matrices=False)
        k = 30 if share == 1 else int((s.square().cumsum(0) < share * s.square().sum()).sum()) + 1
        assert ranks[site] == k
        assert error(found[site], (u[:, :k] * s[:k]) @ vt[:k]) < (1e-4 if route == "exact" else 1e-3)
    assert share < 0.97 or min(ranks.values()) > 8


@pytest.mark.parametrize("rule", [{"energy": 0.8}, {"budget": {"average": 5}}], ids=["energy", "budget"])
def test_statistics_of_all_sites_are_taken_once_where_ranks_depend_on_the_data(
    rule: Any, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    real = site_reading.survey_all
    monkeypatch.setattr(site_reading, "survey_all", lambda *arguments: taken.append(arguments[0]) or real(*arguments))
    keys = {"parameters": {"density": 0.3, "scope": "global"}}
    whole = merged(tmp_path, two, "ties", **keys, output={"rank": 10, "dtype": "float32"})
    assert len(taken) == 1
    found = merged(tmp_path, two, "ties", **keys, output={"rank": rule, "dtype": "float32"})
    assert len(taken) == 2
    for site in json.loads((tmp_path / "out" / "rmkit.json").read_text())["sites"]:
        u, s, vt = torch.linalg.svd(whole[site["site"]], full_matrices=False)
        k = site["rank"]
        assert error(found[site["site"]], (u[:, :k] * s[:k]) @ vt[:k]) < 1e-4


def test_unequal_ranks_are_written_with_patterns_that_peft_reads(two: list[Path], tmp_path: Path) -> None:
    output = {"rank": {"budget": {"average": 3.5}}, "uniform": False, "for": "peft"}
    run(write_recipe(tmp_path, two, "task_arithmetic", output=output), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    receipt = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    for site in receipt["sites"]:
        assert config["rank_pattern"].get("^" + site["site"].replace(".", r"\."), config["r"]) == site["rank"]
    assert config["alpha_pattern"] == config["rank_pattern"]
    assert len({site["rank"] for site in receipt["sites"]}) > 1


def test_the_recipe_is_kept_byte_for_byte_and_the_receipt_names_the_inputs(two: list[Path], tmp_path: Path) -> None:
    import hashlib

    recipe = tmp_path / "recipe.yaml"
    text = f"# why\r\nmerge_method:   linear\nadapters:\n- {two[0].name}\n- {two[1].name}   # second\n"
    recipe.write_bytes(text.encode())
    content = run(recipe, tmp_path / "out").content
    assert (tmp_path / "out" / "rmkit_recipe.yaml").read_bytes() == text.encode()
    assert content["recipe"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert [item["reference"] for item in content["inputs"]] == [path.name for path in two]
    for item, folder in zip(content["inputs"], two, strict=True):
        for file in item["files"]:
            data = (folder / file["name"]).read_bytes()
            assert (file["sha256"], file["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    for file in content["output"]["files"]:
        data = (tmp_path / "out" / file["name"]).read_bytes()
        assert (file["sha256"], file["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert text.replace("\r\n", "\n").rstrip() in (tmp_path / "out" / "README.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "rmkit.json").read_text()


HEADS = {"head.weight": (3, 5), "head.bias": (3,)}


def with_heads(place: Path, seeds: list[int], **shapes: tuple[int, ...]) -> list[Path]:
    adapters: list[Path] = []
    for i, seed in enumerate(seeds):
        draw = torch.Generator().manual_seed(seed)
        heads = {name: torch.randn(shapes.get(f"t{i}", shape), generator=draw) for name, shape in HEADS.items()}
        adapters.append(write_adapter(place / f"t{i}", i, extras=heads, modules_to_save=["head"]))
    return adapters


def head(folder: Path) -> Tensor | None:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors").get("base_model.model.head.weight")


EXTRAS: dict[str, tuple[Any, Any]] = {
    "mean": ("mean", lambda heads: (heads[0] + 3 * heads[1]) / 4),
    "first": ("first", lambda heads: heads[0]),
    "named": ({"first": "second"}, lambda heads: heads[1]),
    "drop": ("drop", lambda heads: None),
}


@pytest.mark.parametrize("case", EXTRAS)
def test_extras(case: str, tmp_path: Path) -> None:
    rule, expected = EXTRAS[case]
    adapters = with_heads(tmp_path, [1, 2])
    entries = [entry(adapters[0]), entry(adapters[1], 3.0, name="second")]
    receipt = run(write_recipe(tmp_path, entries, extras=rule), tmp_path / "out")
    wanted, found = expected([head(path) for path in adapters]), head(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    if wanted is None:
        assert found is None
        assert config["modules_to_save"] is None
        assert receipt.content["dropped"] == ["head.bias: extras: drop", "head.weight: extras: drop"]
    else:
        assert found is not None
        assert error(found, wanted) < 1e-6
        assert config["modules_to_save"] == ["head"]


REFUSED: dict[str, tuple[Any, dict[str, Any], type[RmkitError], str]] = {
    "values differ": ([1, 2], {}, PlanError, r"extras: head\.\w+ differs between .*t0.* and .*t1.*"),
    "shapes differ": ([1, 1], {"t1": (2, 5)}, PlanError, r"differs in shape and has no mean: .* in t0, \[2, 5\] in t1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_extras_that_differ_are_refused_by_default(case: str, tmp_path: Path) -> None:
    seeds, shapes, kind, message = REFUSED[case]
    adapters = with_heads(tmp_path, seeds, **shapes)
    with pytest.raises(kind, match=message):
        run(write_recipe(tmp_path, adapters), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_equal_extras_pass_and_an_unknown_name_is_refused(tmp_path: Path) -> None:
    adapters = with_heads(tmp_path, [4, 4])
    run(write_recipe(tmp_path, adapters), tmp_path / "out")
    kept, own = head(tmp_path / "out"), head(adapters[0])
    assert kept is not None
    assert own is not None
    assert torch.equal(kept, own)
    with pytest.raises((PlanError, RecipeError), match="nobody"):
        run(write_recipe(tmp_path, adapters, extras={"first": "nobody"}), tmp_path / "out2")
