"""What reaches a terminal, a log, a receipt or a card: no control characters, secrets, home folder, nor strangers' Markdown."""

import json
import os
import re
from pathlib import Path

import pytest
from peft.utils.other import get_pattern_key
from small_adapters import entry, factors, sites, write_adapter, write_adapters, write_recipe

from robustmerge_kit.cli import rmkit
from robustmerge_kit.cli.failures import guarded
from robustmerge_kit.disclosure import UNPRINTABLE, presentable, printable, publishable, without_home
from robustmerge_kit.errors import InputError, Several
from robustmerge_kit.output.config import exactly

TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"

pytestmark = pytest.mark.usefixtures("same_handler")

SHOWN = [
    ("plain text", "plain text"),
    ("\x1b[2Jgone", r"\x1b[2Jgone"),
    ("a\r\nb\tc", "a b c"),
    ("\u202etxt.exe", r"\u202etxt.exe"),
    ("\udcff", r"\udcff"),
    ("\x9b31m", r"\x9b31m"),
    ("schön 漢字 🙂", "schön 漢字 🙂"),
    (f"asked with {TOKEN}.", "asked with ***."),
    ("https://me:word@host/x", "https://***@host/x"),
    ("https://host/x?a=1&token=abc&b=2", "https://host/x?a=1&token=***&b=2"),
    ("x" * 9000, "x" * 3997 + "..."),
]


@pytest.mark.parametrize(("text", "shown"), SHOWN)
def test_messages_are_fit_for_a_terminal_and_a_log(text: str, shown: str) -> None:
    assert presentable(text) == shown
    error = InputError(text, where=text, hint=text)
    assert (error.what, error.where, error.hint) == (shown, shown, shown)
    assert str(Several([error, error])) == f"{error}\n{error}"


def test_the_home_folder_is_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert without_home("/home/alice/x:1 and /home/alice, not /home/alicent or /mnt/home/alice") == (
        "~/x:1 and ~, not /home/alicent or /mnt/home/alice"
    )
    assert publishable({"a": ["/home/alice/x", 1, None], "text": "/home/alice"}, verbatim=("text",)) == {
        "a": ["~/x", 1, None],
        "text": "/home/alice",
    }
    monkeypatch.setenv("HOME", "/")
    assert without_home("/x") == "/x"


def run(arguments: list[str]) -> int:
    return guarded(rmkit, arguments)


def test_receipts_and_cards_hold_neither_home_nor_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    adapters = write_adapters(tmp_path / "in", 2, base_model_name_or_path=str(tmp_path / "base"))
    recipe = write_recipe(tmp_path, adapters)
    out = tmp_path / "out"
    assert run(["run", str(recipe), str(out), "--debug", "-v"]) == 0
    said = "".join(capfd.readouterr())
    content = json.loads((out / "rmkit.json").read_text())
    assert [item["reference"] for item in content["inputs"]] == ["~/in/adapter0", "~/in/adapter1"]
    for name in ("rmkit.json", "README.md"):
        assert str(tmp_path) not in (out / name).read_text()
    assert "~/in/adapter0" in (out / "README.md").read_text()
    for path in out.iterdir():
        assert TOKEN.encode() not in path.read_bytes()
    assert TOKEN not in said
    assert (out / "rmkit_recipe.yaml").read_bytes() == recipe.read_bytes()


def test_errors_name_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = write_adapter(tmp_path / "in")
    (folder / "adapter_config.json").write_text("{oops")
    assert run(["run", str(write_recipe(tmp_path, [folder])), str(tmp_path / "out"), "--json"]) == 3
    said = "".join(capfd.readouterr())
    assert str(tmp_path) not in said
    assert "~/in/adapter_config.json: is not JSON" in said


MARKDOWN = "![x](https://evil.example/track.png) <img src=x> `code` | cell"


def test_a_card_shows_strangers_words_as_words(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path / "in", 2, **{MARKDOWN: 1})
    recipe = write_recipe(tmp_path, [entry(adapters[0], name=MARKDOWN), entry(adapters[1], name=f"two {MARKDOWN}")])
    assert run(["run", str(recipe), str(tmp_path / "out"), "--quiet"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    prose = card.partition("## Recipe")[0]
    assert "evil.example" in prose
    assert "![x](" not in prose
    assert "<img" not in prose


BAD_NAMES = ["\x1b]0;owned\x07", "\u202egnp.exe", "\x9b2J", "a\rb"]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("command", ["inspect", "run", "plan", "validate"])
def test_names_of_files_and_keys_do_not_reach_the_terminal(
    name: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = [write_adapter(tmp_path / f"a{name}"), write_adapter(tmp_path / "b", **{f"key{name}": name})]
    folders.append(write_adapter(tmp_path / "c", task_type=name, base_model_name_or_path=name))
    odd = write_adapter(tmp_path / "d", tensors=factors(sites(), 0))
    (odd / "adapter_model.safetensors").rename(odd / f"{name}.safetensors")
    for folder in folders:
        given = [str(folder)] if command == "inspect" else [str(write_recipe(tmp_path, [folder, folder]))]
        run([command, *given, *([str(tmp_path / "out")] if command == "run" else [])])
    if command == "inspect":
        run([command, str(odd)])
        run([command, str(tmp_path / f"nowhere{name}")])
    said = "".join(capfd.readouterr())
    assert said
    assert name not in said
    assert not UNPRINTABLE.search(re.sub("[\r\n\t]", "", said))


def test_a_file_name_that_is_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_model.safetensors").rename(os.fsdecode(os.fsencode(folder) + b"/\xff.safetensors"))
    recipe = write_recipe(tmp_path, [folder])
    assert run(["run", str(recipe), str(tmp_path / "out")]) == 3
    assert r"'\udcff.safetensors' holds control characters" in "".join(capfd.readouterr())


@pytest.mark.parametrize("site", ["a.b", "a(b+)+$", "x|y", "[a-z]*", "^q", "a{1,9}", "back\\slash"])
def test_patterns_written_for_strange_names_fit_that_name_alone(site: str) -> None:
    key = exactly(site)
    assert get_pattern_key([key], site) == key
    for other in ("a.bb", "abbb", "x", "y", "q", "zzz", "aaaa"):
        assert re.match(rf"(.*\.)?({key})$", other) is None or other == site
    assert printable(key) == key


@pytest.mark.parametrize("blank", ["\u2007", "\u00a0", "\u3000", "\v", "\x85"])
def test_unusual_blanks_are_written_out(blank: str) -> None:
    assert printable(f"tensor {blank}x") == f"tensor {repr(blank)[1:-1]}x"
    assert printable("two words") == "two words"
