"""`rmkit push` against a Hub on this machine: what arrives there, and what the Hub refuses."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import small_adapters as small
from push_stub import READER, TOKEN, Hub, Repository, push, serving

from robustmerge_kit.recipe.front_matter import parse_front_matter


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as running:
        yield running


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("merge")
    small.run(small.write_recipe(place, small.write_adapters(place, 2)), place / "out")
    return place / "out"


def test_a_folder_arrives_whole_in_one_commit(hub: Hub, out: Path, tmp_path: Path) -> None:
    said = push(hub, tmp_path, str(out), "org/merged", "--json", "--quiet")
    assert said.code == 0, said.err
    assert said.err == ""
    there = hub.repositories["org/merged"]
    assert there.branches["main"] == {path.name: path.read_bytes() for path in out.iterdir()}
    assert there.commits == [f"linear of 2 adapters by rmkit {json.loads((out / 'rmkit.json').read_text())['rmkit']}"]
    assert not there.private
    assert said.json["url"] == f"{hub.url}/org/merged"
    assert len(said.json["commit"]) == 40
    digests = {item["name"]: item["sha256"] for item in said.json["files"]}
    assert digests == {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in ("adapter_config.json", "adapter_model.safetensors", "rmkit_recipe.yaml")
    }
    card = parse_front_matter(there.branches["main"]["README.md"].decode())
    assert card["base_model"] == "org/tiny"
    assert card["base_model_relation"] == "adapter"
    assert card["library_name"] == "peft"
    assert card["tags"] == ["merge", "lora", "rmkit", "linear"]


def test_branch_message_and_private(hub: Hub, out: Path, tmp_path: Path) -> None:
    said = push(hub, tmp_path, str(out), "org/merged", "--private", "--revision", "v2", "-m", "second try")
    assert said.code == 0, said.err
    there = hub.repositories["org/merged"]
    assert there.private
    assert there.commits == ["second try"]
    assert set(there.branches["v2"]) == {path.name for path in out.iterdir()}
    assert there.branches["main"] == {}
    assert said.out.strip() == f"{hub.url}/org/merged/tree/v2"
    # again: the branch is there, the large file too
    assert push(hub, tmp_path, str(out), "org/merged", "--revision", "v2").code == 0
    assert sum(request.startswith("PUT /upload/") for request in hub.requests) == 1


def test_pull_request_on_somebody_elses_repository(hub: Hub, out: Path, tmp_path: Path) -> None:
    hub.repositories["other/model"] = Repository(branches={"main": {"old/adapter_model.bin": b"old"}})
    said = push(hub, tmp_path, str(out), "other/model", "--create-pr")
    assert said.code == 0, said.err
    assert said.out.strip() == f"{hub.url}/other/model/discussions/1"
    assert "other/model also holds old/adapter_model.bin, which loaders may take instead" in said.err
    assert [name for name, _ in hub.pull_requests] == ["other/model"]
    assert not any("/api/repos/create" in request for request in hub.requests)
    missing = push(hub, tmp_path, str(out), "org/none", "--create-pr")
    assert missing.code == 5
    assert "org/none: 404: no such repository" in missing.err


def test_a_dry_run_asks_nobody(hub: Hub, out: Path, tmp_path: Path) -> None:
    said = push(hub, tmp_path, str(out), "org/merged", "--dry-run", token=None)
    assert said.code == 0, said.err
    assert "would send these, the receipt and the card to org/merged" in said.out
    assert hub.requests == []


REFUSED = {
    "no token": ((), {"token": None}, 2, "no token: uploading needs one that may write\nhint: log in with `hf auth login`"),
    "a wrong token": ((), {"token": "hf_" + "wrongWrongWrongWrong"}, 5, "401: the Hub does not accept the token"),
    "a token that may only read": ((), {"token": READER}, 5, "403: the token may not write there"),
    "offline": ((), {"HF_HUB_OFFLINE": "1"}, 2, "HF_HUB_OFFLINE is set, and uploading needs the network"),
    "a branch for a pull request": (("--create-pr", "--revision", "v2"), {}, 2, "pull requests start from main"),
}


@pytest.mark.parametrize("kind", REFUSED, ids=str)
def test_refused(hub: Hub, out: Path, tmp_path: Path, kind: str) -> None:
    flags, how, code, message = REFUSED[kind]
    said = push(hub, tmp_path, str(out), "org/merged", *flags, **how)
    assert said.code == code, said.err
    assert message in said.err
    assert said.out == ""
    for secret in (TOKEN, READER, str(how.get("token"))):
        assert secret not in said.err
    assert not any(request.startswith("PUT") for request in hub.requests)


def test_a_public_repository_stays_untouched_when_a_private_one_is_wanted(hub: Hub, out: Path, tmp_path: Path) -> None:
    hub.repositories["org/merged"] = Repository()
    said = push(hub, tmp_path, str(out), "org/merged", "--private", "--json")
    assert said.code == 5
    assert said.json["errors"][0]["what"] == "is public, and --private was given"
    assert hub.repositories["org/merged"].commits == []


def test_a_hub_out_of_order_is_named_without_the_token(hub: Hub, out: Path, tmp_path: Path) -> None:
    hub.failing = "/commit/"
    said = push(hub, tmp_path, str(out), "org/merged", "--debug")
    assert said.code == 5
    assert "org/merged: 500: the Hub answers" in said.err
    assert TOKEN not in said.err + said.out


def test_licences_of_inputs_from_the_hub_complete_the_card(hub: Hub, out: Path, tmp_path: Path) -> None:
    for licence, (first, second) in {"apache-2.0": ("apache-2.0", "apache-2.0"), "other": ("mit", "cc-by-nc-4.0")}.items():
        place = tmp_path / licence
        place.mkdir()
        for path in out.iterdir():
            (place / path.name).write_bytes(path.read_bytes())
        receipt = json.loads((place / "rmkit.json").read_text())
        for item, stated in zip(receipt["inputs"], (first, second), strict=True):
            item["repository"] = f"them/{stated}"
            hub.repositories[f"them/{stated}"] = Repository(licence=stated)
        (place / "rmkit.json").write_text(json.dumps(receipt))
        assert push(hub, tmp_path, str(place), f"org/{licence}").code == 0
        card = hub.repositories[f"org/{licence}"].branches["main"]["README.md"].decode()
        assert parse_front_matter(card)["license"] == licence
        assert ("## Licences" in card) == (licence == "other")
        assert ("cc-by-nc-4.0" in card) == (licence == "other")
