"""docs/inspect.md shows what the command really prints."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from robustmerge_kit.cli.inspect import inspect

ROOT = Path(__file__).parents[2]
SHOWN = re.findall(
    r"^\$ rmkit inspect ([^\n]*)\n(.+?)\n```$", (ROOT / "docs" / "inspect.md").read_text(), re.MULTILINE | re.DOTALL
)


def test_the_page_shows_the_command() -> None:
    assert len(SHOWN) == 2


@pytest.mark.parametrize(("arguments", "output"), SHOWN)
def test_the_output_is_that_of_the_command(arguments: str, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(inspect, [*shlex.split(arguments), "-q"], standalone_mode=False)
    assert result.return_value == 0
    assert result.stdout.rstrip("\n") == output


def test_every_option_of_the_page_exists() -> None:
    page = (ROOT / "docs" / "inspect.md").read_text()
    known = {name for parameter in inspect.params for name in parameter.opts}
    assert set(re.findall(r"^\| `(--\w+)`", page, re.MULTILINE)) <= known
