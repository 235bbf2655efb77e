"""What is named on the command line, and the jobs it stands for."""

import json
from pathlib import Path

import pytest

from robustmerge_kit.batch.jobs import find_jobs
from robustmerge_kit.errors import UsageError

RECIPE = "merge_method: linear\nadapters: [a, b]\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("r/one.yaml", "r/two.yml", "r/.hidden.yaml", "r/notes.txt", "r/deep/one.yaml", "s/one.yaml", "a[b].yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECIPE)
    (tmp_path / "empty").mkdir()
    return tmp_path


FOUND = {
    "a folder": (["r"], {"one": "r/one.yaml", "two": "r/two.yml"}),
    "files": (["r/two.yml", "r/one.yaml"], {"two": "r/two.yml", "one": "r/one.yaml"}),
    "a pattern": (["r/*.yaml"], {"one": "r/one.yaml"}),
    "a deep pattern": (["r/**/one.yaml"], {"deep/one": "r/deep/one.yaml", "r/one": "r/one.yaml"}),
    "the same twice": (["r/one.yaml", "r/one.yaml", "r"], {"one": "r/one.yaml", "two": "r/two.yml"}),
    "equal names": (
        ["r/one.yaml", "s/one.yaml", "r/two.yml"],
        {"r/one": "r/one.yaml", "s/one": "s/one.yaml", "two": "r/two.yml"},
    ),
    "a file whose name looks like a pattern": (["a[b].yaml"], {"a-b": "a[b].yaml"}),
    "a file that is not there": (["nowhere.yaml"], {"nowhere": "nowhere.yaml"}),
    "a reference": (["org/repo@v1:recipes/x.yaml"], {"x": "org/repo@v1:recipes/x.yaml"}),
    "an address": (["https://host/a/x.yaml"], {"x": "https://host/a/x.yaml"}),
    "a way upwards": (["../../x.yaml"], {"x": "../../x.yaml"}),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_arguments_stand_for(case: str, place: Path) -> None:
    arguments, expected = FOUND[case]
    jobs, broken = find_jobs(arguments, None, place / "logs")
    assert {job.name: job.recipe for job in jobs} == expected
    assert broken == {}
    assert len({job.log for job in jobs}) == len(jobs)
    assert all(job.log is not None and job.log.parent == place / "logs" for job in jobs)


@pytest.mark.parametrize(("argument", "said"), [("empty", "holds no .yaml"), ("r/*.json", "matches no file")])
def test_what_stands_for_nothing(argument: str, said: str, place: Path) -> None:
    with pytest.raises(UsageError, match=said):
        find_jobs([argument], None, place)


def test_results_under_one_folder_stay_inside_it(place: Path) -> None:
    jobs, _ = find_jobs(["r", "s/one.yaml", "../../../etc/x.yaml"], place / "out", place)
    outs = {job.name: job.out for job in jobs}
    assert outs["r/one"] == place / "out" / "r/one"
    assert all(out is not None and out.resolve().is_relative_to(place / "out") for out in outs.values())


def test_a_matrix_is_many_jobs(place: Path) -> None:
    matrix = {"merge_method": "ties", "adapters": ["x", "y"], "matrix": {"density": [0.1, 0.2]}, "output": {"path": "o"}}
    (place / "grid.yaml").write_text(json.dumps(matrix))
    jobs, _ = find_jobs(["grid.yaml", "r/one.yaml"], None, place)
    assert [(job.name, job.out) for job in jobs] == [
        ("grid/0.1", Path("o/0.1")),
        ("grid/0.2", Path("o/0.2")),
        ("one", None),
    ]
    jobs, _ = find_jobs(["grid.yaml"], place / "out", place)
    assert [job.out for job in jobs] == [place / "out/grid/0.1", place / "out/grid/0.2"]


def test_a_broken_matrix_is_a_job_that_fails(place: Path) -> None:
    (place / "grid.yaml").write_text("recipe: r/one.yaml\nmatrix: {density: 0.1}\n")
    jobs, broken = find_jobs(["grid.yaml", "r/one.yaml"], None, place)
    assert [job.name for job in jobs] == ["grid", "one"]
    assert "grid.yaml:2:19: matrix.density must be a list of values, got 0.1" in broken["grid"].reason


def test_a_recipe_that_only_speaks_of_a_matrix_is_one_job(place: Path) -> None:
    (place / "plain.yaml").write_text(f"# the rank-1 matrix of ..\n{RECIPE}")
    jobs, broken = find_jobs(["plain.yaml"], None, place)
    assert [(job.name, job.variant) for job in jobs] == [("plain", None)]
    assert broken == {}
