"""`rmkit analyze`: what it prints, what it writes, what it refuses."""

import json
import re
from pathlib import Path

import pytest
import torch
from command_line import Call
from small_adapters import content, entry, factors, sites, write_adapter, write_adapters, write_recipe

from robustmerge_kit.cli import rmkit
from robustmerge_kit.report import pictures
from robustmerge_kit.report.analysis import Analysis
from robustmerge_kit.report.analysis.records import Record


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_recipe(tmp_path, write_adapters(tmp_path / "inputs", 3), "linear")


def test_figures_and_verdict_go_to_stdout_in_100_columns(call: Call, recipe: Path):
    answer = call("analyze", recipe, "--compare", "ties:density=0.3,robustmerge", "--compare", "tsv_m")
    assert answer.code == 0
    assert max(map(len, answer.out.splitlines())) <= 100
    for part in ("adapter0", "1 2", "linear: rank", "ties:density=0.3 in full: rank", "robustmerge: rank", "tsv_m:", "verdict"):
        assert part in answer.out
    assert "analysing" in answer.err


def test_nothing_is_written_without_out(call: Call, recipe: Path):
    before = sorted(Path.cwd().rglob("*"))
    assert call("analyze", recipe).code == 0
    assert sorted(Path.cwd().rglob("*")) == before


def test_quiet_says_nothing_on_stderr(call: Call, recipe: Path):
    answer = call("analyze", recipe, "--quiet", "--out", "report")
    assert answer.err == ""
    assert "verdict" in answer.out


def test_json_is_the_report_and_nothing_else(call: Call, recipe: Path):
    answer = call("analyze", recipe, "--json", "--quiet", "--out", "report")
    found = Analysis.model_validate_json(answer.out)
    assert json.loads(answer.out)["format"] == "rmkit-analysis"
    assert json.loads(Path("report/report.json").read_text()) == json.loads(answer.out)
    assert [site.site for site in found.sites] == sorted(sites())
    assert next((site.stack, site.layer, site.module) for site in found.sites) == ("model.layers", 0, "q_proj")


def test_the_report_folder_holds_figures_page_and_pictures(call: Call, recipe: Path):
    assert call("analyze", recipe, "--out", "report").code == 0
    names = set(content(Path("report")))
    assert {"report.json", "report.html"} <= names
    assert any(name.endswith(".png") for name in names) == pictures.can_draw()
    assert "<svg" in Path("report/report.html").read_text()


def test_a_missing_matplotlib_costs_the_pictures_only(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "can_draw", lambda: False)
    answer = call("analyze", recipe, "--out", "report")
    assert answer.code == 0
    assert set(content(Path("report"))) == {"report.json", "report.html"}
    assert 'pip install "robustmerge-kit[plots]"' in answer.err


def test_a_report_is_replaced_only_when_asked(call: Call, recipe: Path):
    assert call("analyze", recipe, "--out", "report").code == 0
    old = Path("report/report.json").read_bytes()
    refused = call("analyze", recipe, "--out", "report", "--compare", "tsv_m")
    assert refused.code == 5
    assert "report: exists already" in refused.err
    assert "--overwrite" in refused.err
    assert Path("report/report.json").read_bytes() == old
    assert call("analyze", recipe, "--out", "report", "--compare", "tsv_m", "--overwrite").code == 0
    assert Path("report/report.json").read_bytes() != old


def test_a_failure_while_writing_leaves_no_report(call: Call, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    answer = call("analyze", recipe, "--out", "report")
    assert answer.code == 5
    assert "the disk is full" in answer.err
    assert "verdict" in answer.out, "figures that are known are not lost"
    assert not Path("report").exists()
    assert [path.name for path in Path.cwd().iterdir() if ".rmkit" in path.name] == []


REFUSED = {
    "no such method": ("linea", 2, "--compare linea: no merge method is called 'linea'", "did you mean linear"),
    "no method": ("linear,,ties", 2, "a method's name is missing", "write METHOD"),
    "no value": ("ties:density", 2, "'density' is not parameter=value", "write METHOD"),
    "twice": ("ties:density=1:density=0.5", 2, "density is given twice", ""),
    "no such parameter": (
        "ties:densty=0.2",
        2,
        "--compare ties:densty=0.2: ties has no parameter 'densty'",
        "did you mean density",
    ),
    "a missing parameter": ("dare_ties", 2, "dare_ties needs the parameter density", "--compare dare_ties:density=VALUE"),
    "out of range": ("ties:density=3", 2, "--compare ties:density=3: site model.layers.0.q_proj: density", ""),
    "no number": ("ties:density=much", 2, "--compare ties:density=much", ""),
    "no such space": ("ties:space=moon", 4, "ties runs in full, core", ""),
    "no space": ("linear:space=core", 4, "linear", ""),
    "wrong number of adapters": ("slerp:t=0.5", 4, "slerp takes exactly 2 adapters, got 3", ""),
    "no rank": ("svd", 4, "svd needs output.rank", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_comparison_that_cannot_be_made_is_refused_before_any_weight_is_read(
    call: Call, recipe: Path, case: str, monkeypatch: pytest.MonkeyPatch
):
    from robustmerge_kit.adapters import SiteFactors

    def read(self: SiteFactors) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(SiteFactors, "read", read)
    wanted, code, what, hint = REFUSED[case]
    answer = call("analyze", recipe, "--compare", wanted, "--out", "report")
    assert answer.code == code, answer.err
    assert what in answer.err
    assert hint in answer.err
    assert not Path("report").exists()


def test_the_same_error_at_every_site_is_said_once(call: Call, recipe: Path):
    answer = call("analyze", recipe, "--compare", "slerp:t=0.5")
    assert answer.err.count("slerp takes exactly 2 adapters") == 1


@pytest.mark.parametrize("flag", ["--device=moon", "--memory=0", "-j0"])
def test_flags_out_of_range_are_refused(call: Call, recipe: Path, flag: str):
    assert call("analyze", recipe, flag).code == 2


def test_a_recipe_that_is_wrong_is_refused(call: Call, tmp_path: Path):
    (tmp_path / "wrong.yaml").write_text("merge_metod: linear\nadapters: [a]\n")
    assert call("analyze", tmp_path / "wrong.yaml").code == 2


def test_not_a_number_is_an_input_error(call: Call, tmp_path: Path):
    tensors = factors(sites(), 0)
    next(iter(tensors.values()))[0, 0] = torch.nan
    recipe = write_recipe(tmp_path, [write_adapter(tmp_path / "a", 1), write_adapter(tmp_path / "b", tensors=tensors)])
    answer = call("analyze", recipe, "--out", tmp_path / "report")
    assert answer.code == 3
    assert "NaN" in answer.err
    assert not (tmp_path / "report").exists()


def test_weights_overrides_and_adapters_own_settings_survive_a_comparison(call: Call, tmp_path: Path):
    """A method is compared on the same updates: weights stay, other settings of the recipe's method do not."""
    adapters = write_adapters(tmp_path / "inputs", 2)
    entries = [entry(adapters[0], 0.5), {"adapter": str(adapters[1]), "parameters": {"density": 0.5}}]
    override = {"match": "*.0.q_proj", "merge_method": "linear", "parameters": {"weight": 3.0}}
    recipe = write_recipe(tmp_path, entries, "ties", parameters={"density": 0.3}, overrides=[override])
    answer = call("analyze", recipe, "--json", "--quiet", "--compare", "task_arithmetic,ties")
    assert answer.code == 0, answer.err
    found = Analysis.model_validate_json(answer.out)
    assert found.methods[0].mixed
    assert not found.methods[1].mixed
    assert [method.label for method in found.methods] == ["ties (recipe)", "task_arithmetic", "ties"]
    assert found.methods[2].parameters["density"] == 1.0
    assert [facts.weights for facts in found.adapters] == [(0.5, 3.0), (1.0, 3.0)]
    (first,) = (site for site in found.sites if site.site == "model.layers.0.q_proj")
    # A plain sum holds each update once, plus what the other one has in common with it.
    for site in found.sites:
        (pair,) = site.pairs
        task = site.merges[1].tasks[0]
        assert task is not None
        assert pair.cosine is not None
        assert pair.norm_ratio is not None
        assert task.projection == pytest.approx(1 + pair.cosine / pair.norm_ratio, rel=1e-4)
    assert first.merges[0].known == pytest.approx(1)


def test_every_key_of_the_report_is_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "analyze.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.]+)`", page))
    named |= {part for name in named for part in name.split(".")}
    keys = {name for record in Record.__subclasses__() for name in record.model_fields}
    assert keys - named == set()


def test_every_threshold_of_the_verdict_is_documented_with_its_value():
    from robustmerge_kit.report.analysis.thresholds import THRESHOLDS

    page = (Path(__file__).resolve().parents[2] / "docs" / "analyze.md").read_text(encoding="utf-8")
    for name, threshold in THRESHOLDS.items():
        assert re.search(rf"\| `{name}` \| {re.escape(f'{threshold.value:g}')} \|", page), name


def test_the_page_shows_what_the_command_prints(call: Call, monkeypatch: pytest.MonkeyPatch):
    root = Path(__file__).resolve().parents[2]
    monkeypatch.chdir(root)
    page = (root / "docs" / "analyze.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^\$ rmkit analyze ([^\n]*)\n(.+?)\n```$", page, re.MULTILINE | re.DOTALL)
    assert call("analyze", *shown[0].split(), "-q").out.rstrip("\n") == shown[1]


def test_the_options_of_the_page_are_those_of_the_command():
    page = (Path(__file__).resolve().parents[2] / "docs" / "analyze.md").read_text(encoding="utf-8")
    listed = {
        flag for line in re.findall(r"^\| (`-[^|]*)\|", page, re.MULTILINE) for flag in re.findall(r"`(--?[\w-]+)`", line)
    }
    command = rmkit.get_command(None, "analyze")  # pyright: ignore[reportArgumentType]
    assert command is not None
    assert listed >= {"--out", "--overwrite", "--compare", "--device", "--memory", "-j", "--json"}
    assert listed <= {flag for parameter in command.params for flag in parameter.opts}
