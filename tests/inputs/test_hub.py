"""References to the Hub, against a stub on 127.0.0.1: what is fetched, what is recorded, what is said when it cannot be."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stub import MAIN, OLD, Hub, resolve_in_child, serving

CONFIG, WEIGHTS = b'{"peft_type": "LORA"}', b"weights"
ADAPTER = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}


def inside(folder: str) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in ADAPTER.items()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    plain = {**ADAPTER, "adapter_model.bin": b"old", "README.md": b"card", "optimizer.pt": b"big", "tokenizer.json": b"{}"}
    repositories = {
        "org/plain": plain,
        "org/bin": {"adapter_config.json": CONFIG, "adapter_model.bin": b"old", "training_args.bin": b"x"},
        "org/llava": {**ADAPTER, "non_lora_trainables.bin": b"p", "config.json": b"{}", "trainer_state.json": b"{}"},
        "org/many": {**inside("math"), **inside("code"), "README.md": b""},
        "org/deep": {**inside("runs/a"), **inside("runs/b")},
        "org/run": {**inside("checkpoint-10"), **inside("checkpoint-20")},
        "org/child": {**inside("best"), "README.md": b""},
        "org/diffusion": {"pytorch_lora_weights.safetensors": b"w", "README.md": b"", "image.png": b""},
        "org/model": {"config.json": b"{}", "model.safetensors": b"w"},
        "org/gguf": {"adapter.gguf": b"w"},
        "org/empty": {"README.md": b""},
        "org/gated": plain,
        "org/broken": plain,
    }
    with serving(Hub(repositories, gated={"org/gated"}, broken={"org/broken"})) as running:
        yield running


def test_only_the_needed_files_are_fetched_and_the_commit_is_recorded(hub: Hub, tmp_path: Path) -> None:
    cases = {
        "org/plain": ["adapter_config.json", "adapter_model.safetensors"],
        "org/bin": ["adapter_config.json", "adapter_model.bin"],
        "org/llava": ["adapter_config.json", "adapter_model.safetensors", "config.json", "non_lora_trainables.bin"],
        "org/many:code": ["adapter_config.json", "adapter_model.safetensors"],
        "org/deep:runs/b": ["adapter_config.json", "adapter_model.safetensors"],
        "org/child": ["adapter_config.json", "adapter_model.safetensors"],
        "org/diffusion": ["pytorch_lora_weights.safetensors"],
    }
    answers = resolve_in_child(hub.url, tmp_path, list(cases), HF_TOKEN="hf_test")
    for (reference, files), answer in zip(cases.items(), answers, strict=True):
        assert answer.get("files") == files, (reference, answer)
        assert answer["repository"] == reference.split(":")[0]
        assert answer["revision"] == MAIN
        assert not answer["torch"]
        assert answer["folder"].startswith(str(tmp_path))
    assert hub.fetched().count("adapter_model.bin") == 1
    assert not {"README.md", "optimizer.pt", "training_args.bin", "trainer_state.json", "math/adapter_config.json"} & set(
        hub.fetched()
    )
    assert {token for _, _, token in hub.requests} == {"Bearer hf_test"}


def test_a_file_a_tag_and_a_commit(hub: Hub, tmp_path: Path) -> None:
    references = ["org/plain:adapter_model.bin", "org/plain@v1", f"org/plain@{OLD}", f"org/many@{MAIN}:math"]
    file, tag, commit, sub = resolve_in_child(hub.url, tmp_path, references)
    assert file["file"] == "adapter_model.bin"
    assert tag["revision"] == commit["revision"] == OLD
    assert tag["folder"] == commit["folder"] != file["folder"]
    assert sub["folder"].endswith("/math")


def test_offline_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    first = resolve_in_child(hub.url, tmp_path, ["org/plain", "org/many:code", "org/plain@v1"])
    hub.requests.clear()
    references = ["org/plain", "org/many:code", "org/plain@v1", "org/many:math", "org/many", "org/llava", "org/plain@v9"]
    answers = resolve_in_child(hub.url, tmp_path, references, HF_HUB_OFFLINE="1")
    assert [(a["folder"], a["revision"]) for a in answers[:3]] == [(a["folder"], a["revision"]) for a in first]
    for answer, part in zip(
        answers[3:], ["only a part", "only a part", "not in the local cache", "not in the local cache"], strict=True
    ):
        assert part in answer["error"]
        assert "HF_HUB_OFFLINE" in answer["error"]
    assert hub.requests == []


def test_a_cached_commit_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    resolve_in_child(hub.url, tmp_path, ["org/plain"])
    hub.requests.clear()
    (answer,) = resolve_in_child(hub.url, tmp_path, [f"org/plain@{MAIN}"])
    assert answer["revision"] == MAIN
    assert hub.requests == []


def test_what_the_hub_refuses_becomes_a_sentence(hub: Hub, tmp_path: Path) -> None:
    cases = {
        "org/gated": ["403: org/gated is gated", "log in"],
        "org/absent": ["no repository org/absent, or it is private", "check the name"],
        "org/plain@v9": ["404: org/plain has no revision 'v9'", "branch, tag or commit"],
        "org/many:physics": ["404: the repository has no subfolder 'physics'; adapters there: code, math"],
        "org/many": ["holds 2 adapters (code, math)", "org/many:code"],
        "org/deep": ["no adapter at the top, but in runs/a, runs/b", "org/deep:runs/a"],
        "org/run": ["a training run with 2 checkpoints", "org/run:checkpoint-20"],
        "org/model": ["a full model, not an adapter", "base_model"],
        "org/gguf": ["is a GGUF file", "convert the original PEFT adapter"],
        "org/empty": ["adapter_config.json is missing"],
        "org/broken": ["500", "try again"],
    }
    for (reference, parts), answer in zip(cases.items(), resolve_in_child(hub.url, tmp_path, list(cases)), strict=True):
        assert answer["kind"] == "InputError"
        assert answer["error"].startswith(reference)
        for part in parts:
            assert part in answer["error"], answer["error"]
    assert hub.fetched() == []


def test_no_network_is_a_sentence(tmp_path: Path) -> None:
    (answer,) = resolve_in_child("http://127.0.0.1:9", tmp_path, ["org/plain"])
    assert "the Hub cannot be asked" in answer["error"]
    assert "HF_HUB_OFFLINE=1" in answer["error"]


def test_local_looking_references_never_reach_the_network(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "org").mkdir()
    references = [
        "./org/plain", "../org/plain", "/org/plain", "~/org/plain", ".hidden/plain", "C:\\adapters\\a",
        "D:/adapters/a", "org\\plain", "adapters/iconqa", "org/plain", "one-word", "a/b/c", "org/plain:../x",
        "other/plain:../x", "other/plain:/etc", "other/x.safetensors", "org/na me", "", " ", "other/..",
        "https://huggingface.co/org/plain",
    ]  # fmt: skip
    for reference, answer in zip(references, resolve_in_child(hub.url, tmp_path, references), strict=True):
        assert answer["kind"] == "InputError", reference
        assert not answer["hub_client"] or reference in ("", " "), reference
    assert hub.requests == []
