"""Wheel and sdist: what they hold, and that the installed wheel merges from another folder."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from small_adapters import read_deltas, write_adapters, write_recipe

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both kinds, built once without network."""
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"wheel": next(out.glob("*.whl")), "sdist": next(out.glob("*.tar.gz"))}


def test_the_wheel_holds_the_package_and_nothing_else(distributions: dict[str, Path]) -> None:
    names = zipfile.ZipFile(distributions["wheel"]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"robustmerge_kit"}
    tracked = {path.relative_to(ROOT).as_posix() for path in (ROOT / "robustmerge_kit").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == tracked
    assert {"robustmerge_kit/report/page/page.css", "robustmerge_kit/report/page/page.js"} <= set(names)
    assert any(name.endswith("entry_points.txt") for name in names)
    assert any("LICENSE" in name for name in names)
    assert not any("__pycache__" in name for name in names)


def build_wheel(place: Path, out: Path, **settings: str) -> tuple[Path | None, str]:
    """A wheel built from a copy of what the build reads, and what the build said."""
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(ROOT / "robustmerge_kit", place / "robustmerge_kit", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings})
    return next(out.glob("*.whl"), None), done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_wheel_with_kernels_is_for_this_platform_and_any_python(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    wheel, said = build_wheel(tmp_path / "tree", tmp_path / "out", RMKIT_NATIVE="1")
    assert wheel is not None, said
    assert "py3-none-" in wheel.name
    assert "py3-none-any" not in wheel.name
    assert "robustmerge_kit/native/kernels.so" in zipfile.ZipFile(wheel).namelist()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"RMKIT_NATIVE": "0"}, "RMKIT_NATIVE=0 asks for none"),
        ({"CC": "no-such-compiler -x"}, "no C compiler: no-such-compiler is not on PATH"),
        ({"CC": "false"}, "false -O3"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_and_says_why(tmp_path: Path, settings: dict[str, str], reason: str) -> None:
    (tmp_path / "tree").mkdir()
    wheel, said = build_wheel(tmp_path / "tree", tmp_path / "out", **settings)
    assert wheel is not None, said
    assert wheel.name.endswith("py3-none-any.whl")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    assert f"without native kernels, merging is slower: {reason}" in " ".join(said.split())


def test_kernels_that_were_asked_for_must_be_built(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    wheel, said = build_wheel(tmp_path / "tree", tmp_path / "out", RMKIT_NATIVE="1", CC="false")
    assert wheel is None
    assert "false -O3" in said


def test_the_sdist_holds_what_a_packager_needs(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = (
        "pyproject.toml",
        "hatch_build.py",
        "robustmerge_kit/native/kernels.c",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "robustmerge_kit/merge.py",
        "tests/conftest.py",
    )
    assert [name for name in needed if name not in names] == []
    assert any(name.startswith("recipes/") for name in names)


def test_the_installed_wheel_merges_from_another_folder(distributions: dict[str, Path], tmp_path: Path) -> None:
    """The packages it depends on are those of the environment the tests run in."""
    place = tmp_path / "env"
    venv.create(place, with_pip=False, symlinks=True)
    library = next((place / "lib").glob("python3*")) / "site-packages"
    installer = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target"]
    subprocess.run([*installer, str(library), str(distributions["wheel"])], check=True)
    import torch

    (library / "others.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    work = tmp_path / "work"
    adapters = write_adapters(work / "inputs", 2)
    write_recipe(work, [path.relative_to(work) for path in adapters], "robustmerge")
    settings = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    probe = [place / "bin" / "python", "-c", "import robustmerge_kit; print(robustmerge_kit.__file__)"]
    where = subprocess.run(probe, capture_output=True, text=True, cwd=work, env=settings, check=True).stdout
    assert where.startswith(str(library))
    command = [place / "bin" / "python", "-m", "robustmerge_kit", "run", "recipe.yaml", "merged", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, env=settings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(read_deltas(work / "merged")) == 4
