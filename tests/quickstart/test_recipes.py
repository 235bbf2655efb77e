"""What `recipes/` promises: every file is listed, valid, writes where git does not look, and every method has one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from robustmerge_kit.methods import BUILTIN
from robustmerge_kit.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(file for file in RECIPES.rglob("*.yaml") if not file.name.endswith(".best.yaml"))
NAMES = [file.relative_to(RECIPES).as_posix() for file in FILES]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_the_recipe_is_valid_and_its_inputs_and_output_are_where_they_belong(file: Path) -> None:
    recipe = load_recipe(file)
    assert recipe.output.path is not None
    assert (file.parent / recipe.output.path).resolve().parent == RECIPES.parent / "merged"
    for entry in recipe.adapters:
        on_hub = re.fullmatch(r"AuroraZengfh/LLaVA_7B_lora_r16_\w+", entry.adapter)
        assert on_hub or (file.parent / entry.adapter / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_the_recipe_begins_with_its_idea_in_one_sentence(file: Path) -> None:
    assert re.match(r"# [A-Z].*[.:,;\w]\n", file.read_text())


def test_no_two_recipes_write_to_one_place() -> None:
    places = [(file.parent / str(load_recipe(file).output.path)).resolve() for file in FILES]
    assert len(set(places)) == len(places)


def test_the_index_lists_every_recipe_and_nothing_else() -> None:
    assert sorted(re.findall(r"\]\((\S+\.yaml)\)", (RECIPES / "README.md").read_text())) == sorted(NAMES)


def test_every_built_in_method_has_a_recipe() -> None:
    shown = {load_recipe(file).merge_method for file in FILES}
    assert {method.name for method in BUILTIN} - shown == set()


def test_every_variant_of_robustmerge_has_a_recipe() -> None:
    recipes = [load_recipe(file) for file in FILES]
    variants = {recipe.parameters.get("variant") for recipe in recipes if recipe.merge_method == "robustmerge"}
    assert {"official", "paper", "factor_sum"} <= variants


def test_the_papers_recipe_holds_its_eight_adapters_at_the_official_settings() -> None:
    recipe = load_recipe(RECIPES / "llava_robustmerge.yaml")
    prefix = "AuroraZengfh/LLaVA_7B_lora_r16_"
    tasks = ["IconQA", "flickr30k", "REC", "ScienceQA", "OCRVQA", "ImageNet", "VizWiz", "VQAv2"]
    assert [entry.adapter for entry in recipe.adapters] == [prefix + task for task in tasks]
    assert (recipe.parameters["density"], recipe.parameters["gain"], recipe.extras) == (0.2, 2.0, "mean")
    assert recipe.output.format == "llava"
    assert {"llava", "lora"} <= set(re.findall("llava|lora", Path(str(recipe.output.path)).name))
