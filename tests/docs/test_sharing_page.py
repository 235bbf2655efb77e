"""The recipes of docs/sharing.md, written to the files they name: they load, and mean what the page says."""

from pathlib import Path

import pytest
from pages import ROOT, Page

from robustmerge_kit.recipe import load_recipe

FILES = {block.file: block.text for block in Page(ROOT / "docs" / "sharing.md").blocks if block.file}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_recipe_that_extends_another(place: Path):
    recipe = load_recipe(place / "mine.yaml")
    assert (recipe.merge_method, recipe.parameters) == ("dare_ties", {"density": 0.5})
    assert [entry.adapter for entry in recipe.adapters] == ["adapters/iconqa", "adapters/flickr30k"]
    assert (recipe.output.rank, recipe.output.path) == (16, "merged/mine")


def test_a_recipe_with_variables(place: Path):
    recipe = load_recipe(place / "recipe.yaml")
    assert (recipe.parameters, recipe.output.path) == ({"density": 0.2}, "merged/iconqa-0.2")
    other = load_recipe(place / "recipe.yaml", {"density": "0.3", "tasks": "[adapters/iconqa,adapters/vizwiz]"})
    assert [entry.adapter for entry in other.adapters] == ["adapters/iconqa", "adapters/vizwiz"]
