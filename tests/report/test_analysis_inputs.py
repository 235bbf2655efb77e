"""Inputs of an analysis that are not two plain adapters: zero, missing and fused updates, DoRA; every space."""

import json
import math
from pathlib import Path

import pytest
import torch
from chosen_updates import D_OUT, SITE, S, U, V, delta, of_two, write
from safetensors.torch import save_file
from small_adapters import PREFIX, write_adapter, write_recipe
from torch import Tensor

from robustmerge_kit.adapters import pack
from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report.analysis import analyze, parse_candidates


def test_zero_and_missing_updates_have_no_figures(tmp_path: Path):
    other = "model.layers.0.v_proj"
    nothing = (torch.zeros(D_OUT, 3), V[:, :3].mT.float())
    made = [
        write(tmp_path, "whole", {SITE: delta(), other: delta()}),
        write(tmp_path, "zero", {SITE: nothing, other: delta()}),
        write(tmp_path, "lacking", {other: delta(s=2 * S)}),
    ]
    found = analyze(load_recipe(write_recipe(tmp_path, made, "linear", missing="zero")))
    q, v = found.sites
    assert [update is not None for update in q.updates] == [True, False, False]
    assert q.pairs == ()
    assert [task is not None for task in q.merges[0].tasks] == [True, False, False]
    assert q.merges[0].tasks[0].projection == pytest.approx(1 / 3)  # pyright: ignore[reportOptionalMemberAccess]
    assert [(pair.first, pair.second) for pair in v.pairs] == [(0, 1), (0, 2), (1, 2)]
    assert found.totals.norm_ratio == pytest.approx(2)
    assert found.totals.pairs[0].cosine == pytest.approx(1 / math.sqrt(2))


@pytest.mark.parametrize("method", ["linear", "robustmerge", "ties", "peft_linear"])
def test_untrained_adapters_alone_are_told_apart(tmp_path: Path, method: str):
    nothing = (torch.zeros(D_OUT, 3), V[:, :3].mT.float())
    made = [write(tmp_path, name, {SITE: nothing}) for name in "ab"]
    found = analyze(load_recipe(write_recipe(tmp_path, made, method)))
    assert found.totals.updates == (None, None)
    assert [one.rule for one in found.verdict].count("untrained") == 2


@pytest.mark.parametrize("space", ["full", "core", "knots", "ctm", "factor"])
def test_every_space_can_be_compared(tmp_path: Path, space: str):
    found = of_two(tmp_path, delta(), delta(U[:, 3:6], S, V[:, 3:6]), compare=f"ties:space={space}:density=0.5")
    assert found.methods[1].space == space
    assert found.methods[1].parameters["density"] == 0.5
    assert len(found.totals.merges) == 2


def test_fused_experts_have_the_figures_of_the_same_updates_apart(tmp_path: Path):
    """Three experts in one pair of factors; the second adapter's last expert is untrained."""
    fused: list[Path] = []
    apart: list[Path] = []
    for t in range(2):
        draw = torch.Generator().manual_seed(t)
        a, b = torch.randn(3, 2, 6, generator=draw), torch.randn(3, 8, 2, generator=draw)
        if t:
            b[2] = 0
        stored = dict(zip("AB", pack(a, b, "peft"), strict=True))
        names = {f"{PREFIX}m.experts.lora_{half}.weight": value.contiguous() for half, value in stored.items()}
        where = {"m.experts": (8, 6)}
        keys = {"r": 2, "alpha": 4.0, "target_modules": []}
        fused.append(
            write_adapter(tmp_path / f"fused{t}", tensors=names, where=where, target_parameters=["experts.down_proj"], **keys)
        )
        each = {f"m.experts.down_proj[{e}]": (b[e], a[e]) for e in range(3)}
        apart.append(write(tmp_path, f"apart{t}", each, alpha=4.0))
    found = analyze(load_recipe(write_recipe(tmp_path, fused, "robustmerge")), parse_candidates("ties:density=0.5"))
    expected = analyze(load_recipe(write_recipe(tmp_path, apart, "robustmerge")), parse_candidates("ties:density=0.5"))
    assert [site.site for site in found.sites] == [f"m.experts.down_proj[{e}]" for e in range(3)]
    assert [len(site.pairs) for site in found.sites] == [1, 1, 0]
    assert found.sites == expected.sites
    assert found.totals == expected.totals


def test_dora_updates_are_judged_by_their_deltas(tmp_path: Path):
    """D = diag(m / |W + B A|) (W + B A) - W by rows, which is not of low rank."""
    base = torch.randn(8, 6, generator=torch.Generator().manual_seed(7))
    (tmp_path / "base").mkdir()
    save_file({f"{SITE}.weight": base}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    deltas: list[Tensor] = []
    made: list[Path] = []
    for t in range(2):
        draw = torch.Generator().manual_seed(t)
        b, a = 0.3 * torch.randn(8, 2, generator=draw), 0.3 * torch.randn(2, 6, generator=draw)
        adapted = (base + b @ a).double()
        magnitude = adapted.norm(dim=1) * (1 + 0.1 * torch.randn(8, generator=draw))
        deltas.append(magnitude[:, None] / adapted.norm(dim=1, keepdim=True) * adapted - base.double())
        names = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector.weight": magnitude.float()}
        tensors = {f"{PREFIX}{SITE}.{name}": value for name, value in names.items()}
        made.append(write_adapter(tmp_path / f"a{t}", tensors=tensors, where={SITE: (8, 6)}, r=2, alpha=2.0, use_dora=True))
    recipe = write_recipe(tmp_path, made, "linear", base_model=str(tmp_path / "base"), dora="delta", output={"rank": 6})
    found = analyze(load_recipe(recipe), parse_candidates("tsv_m"))
    for update, expected in zip(found.sites[0].updates, deltas, strict=True):
        assert update is not None
        assert update.norm == pytest.approx(float(expected.norm()), rel=1e-3)
    expected = float((deltas[0] * deltas[1]).sum() / (deltas[0].norm() * deltas[1].norm()))
    assert found.totals.pairs[0].cosine == pytest.approx(expected, abs=5e-3)
    task = found.totals.merges[0].tasks[0]
    assert task is not None
    mean = (deltas[0] + deltas[1]) / 2
    assert task.projection == pytest.approx(float((mean * deltas[0]).sum() / deltas[0].norm() ** 2), abs=5e-3)
