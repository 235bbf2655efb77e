"""The package of docs/plugins.md, as written there: it is found, it merges, it passes the laws."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, Page

PAGE = Page(ROOT / "docs" / "plugins.md")
FILES = {block.file: block.text for block in PAGE.blocks if block.file}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the package is installed: its module, and what an installer writes beside it."""
    place = tmp_path_factory.mktemp("installed")
    (place / "agree_merge.py").write_text(FILES["agree_merge.py"])
    table = FILES["pyproject.toml"].partition('[project.entry-points."robustmerge_kit.methods"]')[2].split("[")[0]
    metadata = place / "agree_merge-0.1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: agree-merge\nVersion: 0.1.0\n")
    (metadata / "entry_points.txt").write_text("[robustmerge_kit.methods]\n" + table.replace('"', ""))
    paths = [str(place), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


def run(*command: str, environment: dict[str, str], place: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=place, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_package_declares_what_it_needs():
    import tomllib

    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    assert project["entry-points"]["robustmerge_kit.methods"] == {"agree": "agree_merge:METHOD"}


def test_it_is_listed_and_merges(environment: dict[str, str], tmp_path: Path):
    adapters = ROOT / "recipes" / "quickstart" / "adapters"
    recipe = FILES["recipe.yaml"]
    for written, real in (("iconqa", "edges"), ("flickr30k", "mirrored"), ("vizwiz", "left_half")):
        recipe = recipe.replace(f"adapters/{written}", str(adapters / real))
    (tmp_path / "recipe.yaml").write_text(recipe)
    script = (
        "import contextlib\nfrom robustmerge_kit.cli import main\n"
        "for words in (['methods'], ['methods', 'agree'], ['run', 'recipe.yaml', 'merged', '--quiet']):\n"
        "    with contextlib.suppress(SystemExit): main(words)"
    )
    out = run("-c", script, environment=environment, place=tmp_path)
    assert re.search(r"^agree +plugin ", out, re.MULTILINE)
    assert "agree: elementwise method" in out
    assert (tmp_path / "merged" / "adapter_model.safetensors").is_file()


def test_it_passes_the_laws_as_the_page_says(environment: dict[str, str]):
    command = next(line for line in PAGE.code if line.startswith("RMKIT_CONTRACT_METHODS="))
    setting, *words = command.split()
    assert words[:2] == ["python", "-m"]
    key, value = setting.split("=")
    out = run(*words[1:], "-q", "-p", "no:cacheprovider", environment={**environment, key: value}, place=ROOT)
    assert int(re.findall(r"(\d+) passed", out)[0]) > 50
