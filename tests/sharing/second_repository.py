"""A second git repository, made from the folder `content`, and programs that may be called on the way."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

IDENTITY = {
    "GIT_AUTHOR_NAME": "someone",
    "GIT_AUTHOR_EMAIL": "someone@example.org",
    "GIT_COMMITTER_NAME": "someone",
    "GIT_COMMITTER_EMAIL": "someone@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(place: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | IDENTITY
    done = subprocess.run(["git", *words], cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def make_repository(place: Path) -> Path:
    """Turn a folder into a repository with one commit on `main`."""
    if shutil.which("git") is None:
        pytest.skip("the program git is not installed")
    git(place, "init", "--quiet", "--initial-branch=main")
    return commit(place)


def commit(place: Path) -> Path:
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message=content")
    return place


def head(place: Path) -> str:
    return git(place, "rev-parse", "HEAD")
