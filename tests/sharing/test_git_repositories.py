"""Recipes and adapters in a second git repository, by reference."""

import os
import stat
from pathlib import Path

import pytest
from second_repository import commit, git, head, make_repository
from small_adapters import content, run, write_adapter

from robustmerge_kit import git as rooms
from robustmerge_kit.errors import InputError, RecipeError, RmkitError
from robustmerge_kit.merge import merge
from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.sources import resolve


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, an empty cache, and nothing that this process fetched before."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("RMKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rooms, "_OPEN", {})
    return place


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """recipes/x.yaml builds on recipes/base.yaml, which names adapters/a and adapters/b beside it."""
    place = tmp_path / "second"
    write_adapter(place / "adapters" / "a", 1)
    write_adapter(place / "adapters" / "b", 2)
    (place / "recipes").mkdir()
    (place / "recipes" / "base.yaml").write_text("merge_method: linear\nadapters: [../adapters/a, ../adapters/b]\n")
    (place / "recipes" / "x.yaml").write_text("extends: base.yaml\nparameters: {gain: 0.5}\noutput: {path: merged/x}\n")
    return make_repository(place)


def reference(repository: Path, path: str = "recipes/x.yaml", revision: str = "") -> str:
    return f"git+file://{repository}{revision and '@' + revision}:{path}"


def test_a_recipe_runs_by_reference_as_it_does_in_a_clone(second: Path, tmp_path: Path, working_folder: Path) -> None:
    there = run(second / "recipes" / "x.yaml", tmp_path / "clone")
    here = merge(load_recipe(reference(second)))
    assert here.path == working_folder / "merged" / "x"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (here.path / name).read_bytes() == (there.path / name).read_bytes()
    inputs = here.content["inputs"]
    assert [each["name"] for each in inputs] == ["a", "b"]
    assert {each["revision"] for each in inputs} == {head(second)}
    assert {each["repository"] for each in inputs} == {f"git+file://{second}"}
    assert [file["revision"] for file in here.content["recipe"]["files"]] == [head(second)] * 2


def test_the_written_recipe_repeats_the_merge_anywhere(second: Path, tmp_path: Path) -> None:
    first = merge(load_recipe(reference(second)), tmp_path / "one")
    (second / "recipes" / "base.yaml").write_text("merge_method: linear\nadapters: [../adapters/a]\n")
    commit(second)
    again = run(first.path / "rmkit_recipe.yaml", tmp_path / "two")
    weights = "adapter_model.safetensors"
    assert content(first.path)[weights] == content(again.path)[weights]
    assert len(load_recipe(reference(second)).adapters) == 1


def test_branches_tags_and_commits(second: Path) -> None:
    old = head(second)
    git(second, "tag", "v1")
    (second / "recipes" / "base.yaml").write_text("merge_method: linear\nadapters: [../adapters/b]\n")
    commit(second)
    git(second, "branch", "other")
    for revision, expected, where in (("", 1, head(second)), ("other", 1, head(second)), ("v1", 2, old), (old, 2, old)):
        recipe = load_recipe(reference(second, revision=revision))
        assert len(recipe.adapters) == expected, revision
        assert recipe.origin.files[0].revision == where


def test_a_commit_in_the_cache_needs_no_repository(second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = reference(second, revision=head(second))
    merge(load_recipe(pinned), tmp_path / "one")
    second.rename(tmp_path / "gone")
    monkeypatch.setattr(rooms, "_OPEN", {})
    merge(load_recipe(pinned), tmp_path / "two")
    with pytest.raises(RmkitError, match="does not appear to be a git repository"):
        load_recipe(reference(second))


def test_only_what_is_needed_is_fetched(second: Path, tmp_path: Path) -> None:
    (second / "large.bin").write_bytes(os.urandom(2_000_000))
    commit(second)
    git(second, "config", "uploadpack.allowFilter", "true")
    merge(load_recipe(reference(second)), tmp_path / "one")
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept < 500_000


def test_an_adapter_by_reference(second: Path, tmp_path: Path) -> None:
    found = resolve(f"git+file://{second}@main:adapters/a", tmp_path)
    assert found.revision == head(second)
    assert sorted(path.name for path in found.folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    file = resolve(f"git+file://{second}:adapters/a/adapter_model.safetensors", tmp_path)
    assert file.file is not None
    assert file.file.read_bytes() == (second / "adapters" / "a" / "adapter_model.safetensors").read_bytes()


REFUSED = {
    "merge_method: linear\nadapters: [/etc/a]\n": "x.yaml:2:12: /etc/a: a recipe from elsewhere may not name files of",
    "merge_method: linear\nadapters: [~/a]\n": "~/a: a recipe from elsewhere may not name files of this machine",
    "merge_method: linear\nadapters: ['a\\\\b']\n": "a recipe from elsewhere may not name files of this machine",
    "merge_method: linear\nadapters: [../../a]\n": "x.yaml:2:12: ../../a: leads outside of its repository",
    "merge_method: linear\nadapters: [./none]\n": "x.yaml:2:12: ./none: its repository has no such folder",
    "merge_method: linear\nadapters: [a/b/c]\n": "a/b/c: its repository has no such folder",
    "merge_method: linear\nadapters: [none]\n": "none: no such folder, and not a Hub reference",
    "merge_method: linear\nadapters: [{adapter: ./link}]\n": "./link: its repository has no such folder",
    "merge_method: linear\nadapters: ['git+file:///elsewhere:a']\n": "may name other repositories by git+https only",
    "merge_method: linear\nadapters: ['git+ssh://git@host/x:a']\n": "may name other repositories by git+https only",
    "merge_method: linear\nadapters: [../adapters/a]\nbase_model: /base\n": "x.yaml:3:13: /base: a recipe from elsewhere",
    "merge_method: linear\nadapters: [../adapters/a]\noutput: {path: ../o}\n": "may not write to '../o'",
    "merge_method: linear\nadapters: [../adapters/a]\noutput: {path: ~/o}\n": "may not write to '~/o'",
    "extends: /etc/passwd\n": "x.yaml:1:10: extends /etc/passwd: a recipe from elsewhere may not name files of this machine",
    "extends: file:///etc/passwd\n": "may not name files of this machine",
    "extends: ../../base.yaml\n": "leads outside of its repository",
    "extends: link.yaml\n": "extends link.yaml: its repository has no such file",
    "extends: none.yaml\n": "extends none.yaml: its repository has no such file",
    "extends: http://127.0.0.1:9/x.yaml\n": "a recipe from elsewhere may not name this machine",
    "extends: https://localhost/x.yaml\n": "a recipe from elsewhere may not name this machine",
    "extends: 'git+file:///elsewhere:x.yaml'\n": "may name other repositories by git+https only",
    "extends: x.yaml\n": "recipes extend each other in a circle",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_stranger_reaches_nothing_of_this_machine(text: str, second: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("merge_method: linear\nadapters: [/etc/a]\n")
    (second / "recipes" / "x.yaml").write_text(text)
    (second / "recipes" / "link.yaml").symlink_to(tmp_path / "base.yaml")
    (second / "recipes" / "link").symlink_to(second / "adapters" / "a")
    commit(second)
    with pytest.raises(RmkitError) as caught:
        load_recipe(reference(second))
    assert REFUSED[text] in str(caught.value)


def test_a_folder_here_does_not_stand_in_for_one_of_the_hub(second: Path, working_folder: Path) -> None:
    """A recipe from elsewhere that names org/name means the Hub, whatever lies in the working folder."""
    (second / "recipes" / "x.yaml").write_text(
        "merge_method: linear\nadapters: [org/name, ../adapters/a]\nbase_model: org/base\n"
    )
    commit(second)
    plain = load_recipe(reference(second))
    assert [entry.adapter for entry in plain.adapters] == ["org/name", f"git+file://{second}@{head(second)}:adapters/a"]
    write_adapter(working_folder / "org" / "name")
    hidden = load_recipe(reference(second))
    assert hidden.adapters[0].adapter == "hf://org/name"
    assert hidden.base_model == "hf://org/base"


def test_nothing_of_the_repository_is_executed(second: Path, tmp_path: Path) -> None:
    """Filters, hooks and submodules are the ways in which a checkout runs programs."""
    proof = tmp_path / "proof"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {proof}\ncat\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (second / ".gitattributes").write_text("* filter=evil diff=evil\n")
    (second / ".gitmodules").write_text(f'[submodule "m"]\n\tpath = m\n\turl = ext::{program}\n')
    commit(second)
    for hook in ("post-checkout", "post-update", "reference-transaction"):
        (second / ".git" / "hooks" / hook).write_text(program.read_text())
        (second / ".git" / "hooks" / hook).chmod(0o755)
    merge(load_recipe(reference(second)), tmp_path / "out")
    assert not proof.exists()
    assert not list((tmp_path / "cache").rglob("hooks"))


def test_the_callers_git_settings_do_not_leak_in(second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a hook, where git tells its children which repository they are in."""
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "objects"))
    assert len(load_recipe(reference(second)).adapters) == 2
    assert not (tmp_path / "objects").exists()


FORMS = {
    "git+https://host/x.git": ("https://host/x.git", None, ""),
    "git+https://host:8443/a/x.git@v1.0:recipes/x.yaml": ("https://host:8443/a/x.git", "v1.0", "recipes/x.yaml"),
    "git+https://user:pw@host/x@feature/one:x.yaml": ("https://host/x", "feature/one", "x.yaml"),
    "git+ssh://git@host/x.git:x.yaml": ("ssh://git@host/x.git", None, "x.yaml"),
    "git+file:///a/b:./c/../d": "leads outside",
    "git+file:///a/b:c/./d": ("file:///a/b", None, "c/d"),
    "git+file:///a:../b": "leads outside",
    "git+file:///a:/b": "leads outside",
    "git+file://host/a:b": "file:// needs none",
    "git+http://host/x.git:x": "only https",
    "git+ext::sh -c id": "is not a reference to a git repository",
    "git+https://-oProxyCommand=id/x:y": "is not a reference to a git repository",
    "git+ssh://user:pw@host/x:y": "only a user's name",
    "git+ssh://-oProxyCommand=id@host/x:y": "only a user's name",
    "git+https://host/x@--upload-pack=id:y": "is not a branch, tag or commit",
    "git+https://host/x@a..b:y": "is not a branch, tag or commit",
    "git+https://host/x@a@{1}:y": "is not a reference to a git repository",
}


@pytest.mark.parametrize("text", FORMS)
def test_forms_of_references(text: str) -> None:
    expected = FORMS[text]
    if isinstance(expected, str):
        with pytest.raises(InputError) as caught:
            rooms.parse_git_reference(text)
        assert expected in str(caught.value)
        assert "pw" not in str(caught.value)
    else:
        parts = rooms.parse_git_reference(text)
        assert (parts.url, parts.revision, parts.path) == expected
        assert "pw" not in repr(parts)


def test_a_password_goes_to_git_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$*" >> "$0.words"\nenv >> "$0.env"\necho fatal: no such thing >&2\nexit 128\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(RecipeError) as caught:
        load_recipe("git+https://someone:s3cret@example.org/x.git:x.yaml")
    assert "s3cret" not in str(caught.value)
    assert "no such thing" in str(caught.value)
    assert "s3cret" not in program.with_name("git.words").read_text()
    environment = program.with_name("git.env").read_text()
    assert "extraHeader" in environment
    assert "s3cret" not in environment


def test_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match="needs the program git"):
        load_recipe("git+https://example.org/x.git:x.yaml")


def test_a_file_that_is_too_large(second: Path) -> None:
    (second / "recipes" / "x.yaml").write_text("#" * 1_000_001)
    commit(second)
    with pytest.raises(RecipeError, match="is larger than 1000000 bytes"):
        load_recipe(reference(second))


def test_a_secret_in_a_recipe_is_refused_and_not_repeated(second: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"merge_method: linear\nadapters: ['git+file://someone:s3cret@{second}:adapters/a']\n")
    with pytest.raises(RmkitError) as caught:
        run(path, tmp_path / "out")
    assert "s3cret" not in str(caught.value)
