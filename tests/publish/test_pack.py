"""Which folders may be published: those whose files are what their receipt says, and nothing beside them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import small_adapters as small

from robustmerge_kit.errors import InputError, RmkitError, UsageError
from robustmerge_kit.publish import Destination, pack, publish
from robustmerge_kit.recipe.front_matter import licence_beside, parse_front_matter


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("merge")
    small.run(small.write_recipe(place, small.write_adapters(place, 2)), place / "out")
    return place / "out"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def receipt(out: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads((out / "rmkit.json").read_text())
    change(content)
    (out / "rmkit.json").write_text(json.dumps(content))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def outside(content: dict[str, dict[str, list[dict[str, object]]]]) -> None:
    content["output"]["files"].append({"name": "../secret", "size": 1, "sha256": "0"})


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda out: shutil.rmtree(out), "no such folder"),
    "no receipt": (lambda out: (out / "rmkit.json").unlink(), r"no finished output of rmkit: it has no receipt \(rmkit.json\)"),
    "a broken receipt": (lambda out: (out / "rmkit.json").write_text("{"), "is not JSON"),
    "somebody else's receipt": (lambda out: (out / "rmkit.json").write_text("{}"), "is not a receipt that rmkit wrote"),
    "a receipt of nothing": (lambda out: receipt(out, lambda c: c["output"].update(files=[])), "names no file"),  # type: ignore[attr-defined,index]
    "a receipt that leads outside": (lambda out: receipt(out, outside), r"names a file outside of the folder: '../secret'"),  # type: ignore[arg-type]
    "a file is gone": (lambda out: (out / "adapter_config.json").unlink(), "adapter_config.json: is missing"),
    "a bit is flipped": (
        lambda out: flip(out / "adapter_model.safetensors"),
        "adapter_model.safetensors: is not what was written: .* sha256",
    ),
    "a longer file": (
        lambda out: (out / "rmkit_recipe.yaml").write_text("x"),
        "rmkit_recipe.yaml: is not what was written: 1 bytes",
    ),
    "no card": (lambda out: (out / "README.md").unlink(), r"has no card \(README.md\)"),
    "a token in the card": (
        lambda out: (out / "README.md").write_text("token: hf_" + "a" * 34),
        "README.md: holds what looks like an access token",
    ),
}


@pytest.mark.parametrize("kind", CASES, ids=str)
def test_refused(out: Path, kind: str) -> None:
    damage, message = CASES[kind]
    damage(out)
    with pytest.raises(InputError, match=message):
        pack(out)


def test_all_that_is_wrong_is_said_at_once(out: Path) -> None:
    flip(out / "adapter_model.safetensors")
    (out / "adapter_config.json").unlink()
    with pytest.raises(RmkitError, match=r"(?s)adapter_config.json: is missing.*adapter_model.safetensors: is not what"):
        pack(out)


def test_what_is_not_of_the_merge_stays_here(out: Path) -> None:
    (out / "private").mkdir()
    (out / "private" / "notes.txt").write_text("mine")
    parcel = pack(out)
    assert "private/notes.txt" not in parcel.files
    assert parcel.notes == ("1 files are not of the merge and stay here: private/notes.txt",)


def test_a_card_without_front_matter_is_noted(out: Path) -> None:
    (out / "README.md").write_text("# mine\n")
    assert "the card has no front matter, so the Hub does not know what this is" in pack(out).notes


@pytest.mark.parametrize(
    "name", ["merged", "org/", "/merged", "org/a/b", "https://huggingface.co/org/a", "org/a--b", "org/a.git"]
)
def test_names_that_are_no_repository(out: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a repository's name"):
        publish(out, Destination(name), dry_run=True)


# --- the card's front matter ----------------------------------------------------------------------------------------------

LICENCES = {
    "all the same": (("mit", "mit"), "mit", False),
    "different": (("mit", "apache-2.0"), "other", True),
    "one does not say": (("mit", None), None, True),
    "none says": ((None, None), None, False),
    "its own": (("other\nlicense_name: my-own", "other\nlicense_name: my-own"), "my-own", False),
    "no words": (("[1]", "[1]"), None, False),
}


@pytest.mark.parametrize("kind", LICENCES, ids=str)
def test_the_cards_licence_is_that_of_the_inputs(tmp_path: Path, kind: str) -> None:
    stated, licence, noted = LICENCES[kind]
    adapters = small.write_adapters(tmp_path, 2)
    for adapter, text in zip(adapters, stated, strict=True):
        if text:
            (adapter / "README.md").write_text(f"---\nlicense: {text}\ntags: [x]\n---\n# card\n")
    small.run(small.write_recipe(tmp_path, adapters), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert parse_front_matter(card).get("license") == licence
    assert ("## Licences" in card) == noted
    if noted:
        assert "- adapter0: mit" in card


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("---\nlicense: mit\n---\n", {"license": "mit"}),
        ("\n---\r\nlicense: mit\r\n---\r\nmore", {"license": "mit"}),
        ("# no front matter\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("---\n- a\n---\n", {}),
        ("---\nlicense: !!python/object:os.system x\n---\n", {}),
        ("---\na: &a [*a]\n---\n", {}),
        ("---\n" + "[" * 5000 + "\n---\n", {}),
    ],
)
def test_front_matter_of_strangers(text: str, found: dict[str, object], tmp_path: Path) -> None:
    assert parse_front_matter(text) == found
    (tmp_path / "README.md").write_text(text)
    assert licence_beside(tmp_path) == found.get("license")
