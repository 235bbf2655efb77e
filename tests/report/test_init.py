"""`rmkit init`: the recipe it writes plans for every group of adapters that can be merged, and says why it is as it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from small_adapters import factors, run, sites, write_adapter, write_adapters

from robustmerge_kit.cli.start import init as command
from robustmerge_kit.errors import InputError, OutputError
from robustmerge_kit.merge import prepare
from robustmerge_kit.recipe import FirstOf, load_recipe, parse_recipe


def start(*arguments: Path | str) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)], standalone_mode=False, catch_exceptions=False)


def written(place: Path, *adapters: Path | str) -> Path:
    """A recipe in `place` that plans."""
    path = place / "recipe.yaml"
    result = start(*adapters, "-o", path)
    assert result.return_value == 0, result.stderr
    prepare(path)
    return path


def test_the_recipe_goes_to_stdout_with_the_references_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapters(tmp_path, 2)
    monkeypatch.chdir(tmp_path)
    result = start("adapter0", "./adapter1")
    assert result.return_value == 0
    recipe = parse_recipe(result.stdout)
    assert [entry.adapter for entry in recipe.adapters] == ["adapter0", "adapter1"]
    assert [entry.name for entry in recipe.adapters] == ["adapter0", "adapter1"]
    assert (recipe.merge_method, recipe.base_model, recipe.missing, recipe.extras) == (
        "robustmerge",
        "org/tiny",
        "error",
        "error",
    )


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_adapters(tmp_path / "inputs", 2)
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "real")
    monkeypatch.chdir(tmp_path / "inputs")
    for folder, way in (("deep/real", "../../inputs"), ("link", "../../inputs"), ("inputs", "."), (".", "inputs")):
        path = tmp_path / folder / f"{Path(folder).name or 'here'}.yaml"
        assert start("adapter0", "../inputs/adapter1", "-o", path).return_value == 0
        names = [str(Path(entry.adapter)) for entry in load_recipe(path).adapters]
        assert names == [str(Path(way) / "adapter0"), str(Path(way) / "adapter1")]
        prepare(path)
    absolute = tmp_path / "absolute.yaml"
    start(tmp_path / "inputs" / "adapter0", "-o", absolute)
    assert load_recipe(absolute).adapters[0].adapter == str(tmp_path / "inputs" / "adapter0")


def test_names_stay_distinct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        write_adapter(tmp_path / name / "adapter", extras={"score.weight": torch.zeros(2 if name == "a" else 3, 5)})
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(written(tmp_path, "a/adapter", "b/adapter", "a/adapter"))
    assert len({entry.name for entry in recipe.adapters}) == 3


def heads(*shapes: tuple[int, ...] | None) -> Callable[[Path], list[Path]]:
    def make(place: Path) -> list[Path]:
        return [
            write_adapter(place / f"adapter{i}", i, extras={"score.weight": torch.ones(shape)} if shape else {})
            for i, shape in enumerate(shapes)
        ]

    return make


def missing(place: Path) -> list[Path]:
    return [write_adapter(place / "adapter0"), write_adapter(place / "adapter1", 1, where=sites(1))]


def unequal(place: Path) -> list[Path]:
    return [write_adapter(place / f"adapter{r}", r, r=r) for r in (2, 8)]


def biased(place: Path) -> list[Path]:
    extras = {"model.layers.0.q_proj.bias": torch.ones(12)}
    return [write_adapter(place / f"adapter{i}", i, extras=extras, bias="lora_only") for i in range(2)]


def split_heads(place: Path) -> list[Path]:
    return [write_adapter(place / f"adapter{i}", i, extras={f"head{i}.weight": torch.ones(2, 2)}) for i in range(2)]


def numbered(place: Path) -> list[Path]:
    for i in range(2):
        (place / f"adapter{i}").mkdir(parents=True)
        tensors = {f"w_{half}_{n:03d}": torch.randn(*s) for n in range(3) for half, s in (("a", (2, 5)), ("b", (6, 2)))}
        save_file(tensors, place / f"adapter{i}" / "lora.safetensors")
    return [place / "adapter0", place / "adapter1"]


def kohya(place: Path) -> list[Path]:
    for i in range(2):
        (place / f"adapter{i}").mkdir(parents=True)
        stem = "lora_unet_down_blocks_0_to_q"
        tensors = {f"{stem}.lora_down.weight": torch.randn(2, 5), f"{stem}.lora_up.weight": torch.randn(6, 2)}
        save_file({**tensors, f"{stem}.alpha": torch.tensor(2.0)}, place / f"adapter{i}" / "style.safetensors")
    return [place / "adapter0", place / "adapter1"]


def llava(place: Path) -> list[Path]:
    made = []
    for i in range(2):
        made.append(write_adapter(place / f"adapter{i}", i, file="adapter_model.bin"))
        torch.save({"base_model.model.model.mm_projector.0.weight": torch.ones(2, 2)}, made[-1] / "non_lora_trainables.bin")
        (made[-1] / "config.json").write_text(json.dumps({"model_type": "llava_llama", "hidden_size": 8}))
    return made


ANSWERS = {
    "nothing to answer": (heads(None, None), {}, None),
    "unequal ranks": (unequal, {}, None),
    "sites missing": (missing, {"missing": "zero"}, "# of 4 sites, adapter1 lacks 2"),
    "equal heads": (heads((2, 5), (2, 5)), {"extras": "mean"}, "# score.weight is in every input"),
    "heads of other shapes": (
        heads((2, 5), (3, 5)),
        {"extras": FirstOf(first="adapter0")},
        "# score.weight differs in shape and has no mean: [2, 5] in adapter0, [3, 5] in adapter1",
    ),
    "one head": (heads(None, (3, 5)), {"extras": FirstOf(first="adapter1")}, "# score.weight is only in adapter1"),
    "heads of other names": (split_heads, {"extras": "first"}, "# head0.weight is only in adapter0"),
    "biases": (biased, {"extras": FirstOf(first="adapter0")}, "has no mean: its values (bias)"),
    "numbered": (numbered, {"format": "same"}, "# the inputs are a numbered LoRA"),
    "kohya": (kohya, {"format": "same"}, "# the inputs are a kohya LoRA"),
    "llava": (llava, {"format": "llava", "extras": "mean", "path": "llava-lora-merged"}, "LLaVA's own layout"),
}


@pytest.mark.parametrize(("make", "settings", "reason"), ANSWERS.values(), ids=ANSWERS.keys())
def test_what_would_stop_the_merge_is_answered(
    tmp_path: Path, make: Callable[[Path], list[Path]], settings: dict[str, Any], reason: str | None
) -> None:
    path = written(tmp_path, *make(tmp_path))
    recipe = load_recipe(path)
    output = {"format": recipe.output.format, "path": recipe.output.path}
    found = {"missing": recipe.missing, "extras": recipe.extras, **output}
    assert found == {"missing": "error", "extras": "error", "format": "peft", "path": None, **settings}
    assert reason is None or reason in path.read_text()
    run(path, tmp_path / "llava-lora-out")


def test_a_file_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 2)
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        start(*adapters, "-o", path)
    assert path.read_text() == "mine"
    assert start(*adapters, "-o", path, "--overwrite").return_value == 0
    prepare(path)
    with pytest.raises(OutputError, match="is a folder"):
        start(*adapters, "-o", tmp_path)
    with pytest.raises(OutputError, match="its folder does not exist"):
        start(*adapters, "-o", tmp_path / "none" / "recipe.yaml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter0", "adapter1", "recipe.yaml"]


def test_broken_adapters_are_named_together_and_nothing_is_written(tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good")
    path = tmp_path / "recipe.yaml"
    (tmp_path / "empty").mkdir()
    dora = write_adapter(tmp_path / "dora", use_dora=True)
    with pytest.raises(Exception, match=r"no adapter here[\s\S]*use_dora"):
        start(good, tmp_path / "empty", dora, "-o", path)
    other = write_adapter(tmp_path / "other", where={"encoder.a": (3, 3)})
    with pytest.raises(InputError, match="share no module"):
        start(good, other, "-o", path)
    assert not path.exists()


def test_what_cannot_be_answered_is_told_with_the_exit_code_of_a_plan(tmp_path: Path) -> None:
    first, second = llava(tmp_path)
    (second / "config.json").write_text(json.dumps({"model_type": "llava_llama", "hidden_size": 9}))
    path = tmp_path / "recipe.yaml"
    result = start(first, second, "-o", path)
    assert result.return_value == 4
    assert "config.json disagrees on hidden_size" in result.stderr
    assert path.exists()


def test_json(tmp_path: Path) -> None:
    tensors = {name: value.double() for name, value in factors(sites(), 0).items()}
    adapters = [write_adapter(tmp_path / "a", tensors=tensors), write_adapter(tmp_path / "b")]
    found = json.loads(start(*adapters, "--json", "-q").stdout)
    assert set(found) == {"path", "recipe", "notes", "problem"}
    assert found["path"] is None
    assert found["problem"] is None
    assert found["notes"] == ["a: 8 tensors are float64; arithmetic is float32"]
    parse_recipe(found["recipe"])


GROUPS = {
    "A distilbert": ("Tashu014", "arshiaanjum", "artigupta", "joelorellana", "Phiziics", "wenlianghuang"),
    "A1 distilbert q only": ("Phiziics", "wenlianghuang"),
    "B gpt2": ("parikshit-06__domain-skeleton-gpt2__adapters--legal", "LMHan122", "anirudh", "hitoshi", "LaziestCactus"),
    "B1 legal and medical": (
        "parikshit-06__domain-skeleton-gpt2__adapters--l",
        "parikshit-06__domain-skeleton-gpt2__adapters--m",
    ),
    "C bert-base": ("Hareshjethani", "T-Sharif", "vykhvan"),
    "D gemma": (
        "pakkio__gemma3-270M-finetuning-ner__outputs--gemma3-270m-g",
        "pakkio__gemma3-270M-finetuning-ner__outputs--gemma3-r",
    ),
    "E arabic": ("zmousa", "derived__null-base"),
    "F numbered": ("MathieuNlp__Sam_LoRA__lora_weights--lora_rank2", "MathieuNlp__Sam_LoRA__lora_weights--lora_rank4"),
}


@pytest.mark.parametrize("starts", GROUPS.values(), ids=GROUPS.keys())
def test_real_groups(real_inputs: Path, tmp_path: Path, starts: tuple[str, ...]) -> None:
    place = sorted((real_inputs / "adapters").iterdir())
    path = written(tmp_path, *(next(p for p in place if p.name.startswith(start)) for start in starts))
    if starts[0] in ("zmousa", "Phiziics"):
        run(path, tmp_path / "out")
