"""docs/inspect.md and docs/diff.md show what their commands really print."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from robustmerge_kit.cli.diff import diff
from robustmerge_kit.cli.inspect import inspect

ROOT = Path(__file__).parents[2]
COMMANDS = {"inspect": inspect, "diff": diff}
PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text() for name in COMMANDS}
SHOWN = [
    (name, *found)
    for name, page in PAGES.items()
    for found in re.findall(rf"^\$ rmkit {name} ([^\n]*)\n(.+?)\n```$", page, re.MULTILINE | re.DOTALL)
]


def test_the_pages_show_the_commands() -> None:
    assert [name for name, _, _ in SHOWN] == ["inspect", "inspect", "diff"]


@pytest.mark.parametrize(("name", "arguments", "output"), SHOWN)
def test_the_output_is_that_of_the_command(name: str, arguments: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(COMMANDS[name], [*shlex.split(arguments), "-q"], standalone_mode=False)
    assert result.return_value == 0
    assert result.stdout.rstrip("\n") == output


@pytest.mark.parametrize(("name", "command"), COMMANDS.items())
def test_the_options_of_a_page_are_those_of_its_command(name: str, command: click.Command) -> None:
    known = {flag for parameter in command.params for flag in parameter.opts}
    listed = set(re.findall(r"^\| `(--[\w-]+)`", PAGES[name], re.MULTILINE))
    assert listed
    assert listed <= known
