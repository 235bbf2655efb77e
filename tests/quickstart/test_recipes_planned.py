"""Every recipe whose inputs ship is planned, and the schema that editors use agrees with the parser on all of them."""

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from robustmerge_kit.merge import prepare
from robustmerge_kit.recipe import json_schema, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(file for file in RECIPES.rglob("*.yaml") if not file.name.endswith(".best.yaml"))
LOCAL = [file for file in FILES if not any(entry.adapter.startswith("AuroraZengfh/") for entry in load_recipe(file).adapters)]


@pytest.mark.parametrize("file", LOCAL, ids=lambda file: file.stem)
def test_planned(file: Path) -> None:
    plan = prepare(file)
    assert plan.steps
    assert plan.write_bytes > 0


def test_only_the_papers_recipe_needs_the_hub() -> None:
    assert [file.name for file in FILES if file not in LOCAL] == ["llava_robustmerge.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_schema_accepts_it(file: Path) -> None:
    validator = Draft202012Validator(json_schema())
    content = json.loads(json.dumps(YAML(typ="safe").load(file.read_text())))
    assert list(validator.iter_errors(content)) == []
    assert list(validator.iter_errors({**content, "merge_metod": "linear"})) != []
