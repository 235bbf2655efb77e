"""What the documentation says exists: commands, flags, methods, keys, links, targets; and what it shows works."""

import importlib.util
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest
from pages import PAGES, ROOT, Page

from robustmerge_kit import errors
from robustmerge_kit.cli import COMMANDS, mergekit_flags, rmkit
from robustmerge_kit.cli.failures import BUG, INTERRUPTED, TERMINATED
from robustmerge_kit.methods import BUILTIN, names
from robustmerge_kit.recipe import parse_recipe
from robustmerge_kit.recipe.mergekit import MergekitRecipe
from robustmerge_kit.recipe.schema import SPACE_OPTIONS, Recipe

MM_MERGEBENCH = "a flag of the scripts in benchmarks/mm_mergebench, compared with them by tests/mm_mergebench"
QUALITY = "a flag of benchmarks/quality, compared with it by tests/quality"
FOREIGN_FLAGS = {
    "--model-base": "a flag of LLaVA's scripts",
    **dict.fromkeys(("--enable-lora", "--max-lora-rank", "--lora-modules"), "flags of `vllm serve`"),
    **dict.fromkeys(("--model-path", "--lora-paths"), "flags of SGLang's server"),
    **dict.fromkeys(("--model-id", "--lora-adapters"), "flags of TGI's launcher"),
    **dict.fromkeys(("--outtype", "--outfile", "--lora"), "flags of llama.cpp's programs"),
    **dict.fromkeys(("--base", "--data", "--images", "--adapters", "--methods", "--adapter", "--model"), MM_MERGEBENCH),
    **dict.fromkeys(("--tasks", "--preprocessing", "--batch-size", "--dtype", "--out", "--check", "--limit"), MM_MERGEBENCH),
    **dict.fromkeys(("--label", "--mmbench", "--print", "--collect"), MM_MERGEBENCH),
    **dict.fromkeys(("--model", "--tasks", "--limit", "--batch", "--output"), "flags of lm_eval, or their beginning"),
    "--head": "a flag of `ray start`",
    **dict.fromkeys(("--modality", "--cache", "--encoder", "--test-rows", "--choose-rows", "--only"), QUALITY),
    "--array": "a flag of Slurm's sbatch",
    "--rm": "a flag of docker",
    "--cpus": "a flag of docker",
}
"""Flags of other programs that the documentation mentions."""

OF_EVERY_COMMAND = {"--help", "-h"}

every = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load_generator()


def flags_of(name: str) -> set[str]:
    options = [each for each in generate.command(name).params if isinstance(each, click.Option)]
    return {flag for each in options for flag in (*each.opts, *each.secondary_opts)}


FLAGS = {name: flags_of(name) for name in COMMANDS}


def page(name: str) -> Page:
    return next(each for each in PAGES if each.name == name)


def rows(text: str) -> list[list[str]]:
    """The cells of every line of every table."""
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]


def first_cells(text: str) -> list[str]:
    return [cells[0].strip() for cells in rows(text)]


# --- generated pages ------------------------------------------------------------------------------------------------------


def test_what_is_generated_is_up_to_date():
    stale = [path.name for path, text in generate.pages().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "run: python docs/generate.py"


def test_no_page_of_a_method_that_is_gone():
    assert set((ROOT / "docs" / "methods").iterdir()) <= set(generate.pages())


def test_every_method_has_a_page_and_a_line_in_the_index():
    index = page("docs/methods/README.md")
    for method in BUILTIN:
        (target,) = re.findall(rf"\[{method.name}\]\((\w+\.md)\)", index.text)
        assert f"\n## {method.name}\n" in (ROOT / "docs" / "methods" / target).read_text()


# --- what is named exists -------------------------------------------------------------------------------------------------


@every
def test_commands_and_their_flags_exist(page: Page):
    for code in page.code:
        for command, rest in re.findall(r"\brmkit ([a-z][a-z-]*)(?![.\w-])([^`;|]*)", code):
            assert command in COMMANDS, code
            assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest.split(" #")[0])) <= FLAGS[command] | OF_EVERY_COMMAND, code


@every
def test_every_flag_is_one_of_ours_or_known_to_be_of_another_program(page: Page):
    known = {"--version", *OF_EVERY_COMMAND, *FOREIGN_FLAGS}.union(*FLAGS.values())
    spoken = {flag for code in page.code for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)}
    assert spoken - known == set()


def test_every_command_has_a_section_that_names_its_visible_flags():
    cli = page("docs/cli.md")
    common, *sections = re.split(r"^## rmkit ", cli.text, flags=re.MULTILINE)
    assert [section.split("\n")[0] for section in sections] == list(COMMANDS)
    for section in sections:
        name = section.split("\n")[0]
        for option in generate.command(name).params:
            if isinstance(option, click.Option) and not option.hidden:
                assert any(f"`{flag}`" in section + common for flag in option.opts), (name, option.name)


def test_mergekits_flags_are_listed_as_they_are_treated():
    text = page("docs/cli.md").text
    accepted, refused = text.partition("These are accepted")[2].split("These are refused", 1)
    refused = refused.split("##")[0]
    listed = [{flag[2:].replace("-", "_") for flag in re.findall(r"--[a-z-]+", part)} for part in (accepted, refused)]
    assert listed == [set(mergekit_flags.NOT_NEEDED), set(mergekit_flags.REFUSED)]


def test_the_exit_codes_are_those_of_the_program():
    listed = {int(cell) for cell in first_cells(page("docs/cli.md").text) if cell.isdigit()}
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.RmkitError)]
    assert listed == {int(code) for code in re.findall(r"(\d+) [a-z]", str(rmkit.help))}
    assert listed >= {each.exit_code for each in classes} | {0, BUG, INTERRUPTED, TERMINATED}


@every
def test_methods_exist(page: Page):
    named = re.findall(r"(?:merge_method:|rmkit methods) ([a-z][\w/]*)", page.text)
    known = {*names(), *(step for step in re.findall(r"^## (\w+)", (ROOT / "docs/methods/steps.md").read_text(), re.MULTILINE))}
    example = {"agree"} if page.name == "docs/plugins.md" else set()
    assert set(named) - known - example == set()


def test_the_keys_of_a_recipe_are_those_of_the_schema():
    text = page("docs/recipes.md").text
    listed = {
        cell.strip("`")
        for block in re.findall(r"<!-- begin keys .*?<!-- end -->", text, re.DOTALL)
        for cell in first_cells(block)
        if cell.startswith("`")
    }
    schemas = [Recipe, MergekitRecipe, *SPACE_OPTIONS.values()]
    known: set[str] = set()
    for model in schemas:
        whole = model.model_json_schema(by_alias=True)
        for each in (whole, *whole.get("$defs", {}).values()):
            for form in (each, *each.get("anyOf", ())):
                known |= set(form.get("properties", {}))
    assert listed == known


def test_every_space_and_step_is_described():
    text = page("docs/recipes.md").text
    assert all(f"`{space}`" in text for space in SPACE_OPTIONS)


@every
def test_make_targets_exist(page: Page):
    makefile = (ROOT / "Makefile").read_text()
    for code in page.code:
        for target in re.findall(r"^make ([a-z]+)", code):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_readme_says_how_to_start_and_how_to_test():
    assert {"make quickstart", "make test"} <= set(page("README.md").code)


def test_the_readme_links_every_page():
    linked = {(ROOT / target).resolve() for target in page("README.md").links if not target.startswith("http")}
    assert set((ROOT / "docs").glob("*.md")) - linked == set()


@every
def test_links_resolve(page: Page):
    for target in page.links:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.path.parent / path).resolve() if path else page.path
        assert there.exists(), target
        if anchor:
            assert anchor in Page(there).anchors, target


# --- what is shown works --------------------------------------------------------------------------------------------------


RECIPES = [
    pytest.param(block.text, id=f"{each.name}-{number}")
    for each in PAGES
    for number, block in enumerate(each.blocks, 1)
    if block.language == "yaml" and block.file is None and "merge_method:" in block.text
]


@pytest.mark.parametrize("text", RECIPES)
def test_recipes_are_valid(text: str):
    parse_recipe(text, Path("recipe.yaml"))


def test_yaml_blocks_without_a_method_are_none():
    """A block that is no recipe would go unchecked."""
    assert not [b.text for each in PAGES for b in each.blocks if b.language == "yaml" and "merge_method:" not in b.text]


@every
def test_python_compiles(page: Page):
    for block in page.blocks:
        if block.language == "python":
            compile(block.text, page.name, "exec")


@every
def test_tables_have_as_many_cells_in_every_line(page: Page):
    for before, after in itertools.pairwise(page.prose.splitlines()):
        if before.startswith("|") and after.startswith("|"):
            assert len(rows(before)[0]) == len(rows(after)[0]), after
