"""Adapters of one base under drifting names; adapters that do not belong together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import folder, pair

from robustmerge_kit.adapters import Adapter, align, base_name, read_adapter
from robustmerge_kit.errors import InputError
from robustmerge_kit.sources import resolve

LINEAR = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
WIDTHS = {"self_attn.q_proj": (4, 3), "self_attn.v_proj": (5, 3), "mlp.up_proj": (6, 3)}


def layers(prefix: str, count: int, leaves: tuple[str, ...] = LINEAR, wider: int = 0) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(count):
        for leaf in leaves:
            d_out, d_in = WIDTHS[leaf]
            tensors |= pair(f"{prefix}layers.{layer}.{leaf}", d_out + wider, d_in)
    return tensors


def make(place: Path, label: str, tensors: dict[str, torch.Tensor], **settings: Any) -> Adapter:
    return read_adapter(resolve(str(folder(place / label, tensors, **settings)), place), label=label)


def test_equal_names_stay(tmp_path: Path) -> None:
    adapters = [make(tmp_path, "a", layers("model.", 2)), make(tmp_path, "b", layers("model.", 2))]
    assert align(adapters) == (adapters, [])
    assert align([]) == ([], [])


def test_missing_sites_are_left_to_the_plan(tmp_path: Path) -> None:
    adapters = [make(tmp_path, "a", layers("model.", 3)), make(tmp_path, "b", layers("model.", 1, ("mlp.up_proj",)))]
    assert align(adapters)[0] == adapters


def test_disjoint_targets_joined_by_a_third(tmp_path: Path) -> None:
    q = make(tmp_path, "q", layers("model.", 2, ("self_attn.q_proj",)))
    v = make(tmp_path, "v", layers("model.", 2, ("self_attn.v_proj",)))
    both = make(tmp_path, "both", layers("model.", 2))
    assert align([q, v, both])[0] == [q, v, both]
    with pytest.raises(InputError, match=r"inputs share no module: v has model.layers.0.self_attn.v_proj, q has .*q_proj"):
        align([q, v])


DRIFTS = [
    ("model.", "model.language_model."),
    ("language_model.model.", "model.language_model."),
    ("", "transformer."),
    ("model.language_model.", "model."),
    ("bert.encoder.", "encoder."),
]


@pytest.mark.parametrize(("old", "new"), DRIFTS)
@pytest.mark.parametrize("leaves", [LINEAR, ("mlp.up_proj",)], ids=["all", "one leaf"])
def test_one_prefix_is_rewritten(tmp_path: Path, old: str, new: str, leaves: tuple[str, ...]) -> None:
    first = make(tmp_path, "first", layers(new, 3))
    other = make(tmp_path, "other", layers(old, 3, leaves))
    (_, moved), notes = align([first, other])
    assert set(moved.sites) == {name for name in first.sites if name.endswith(leaves)}
    assert {name: moved.sites[name].a.spec.name for name in moved.sites} == {
        name: f"base_model.model.{old}{name.removeprefix(new)}.lora_A.weight" for name in moved.sites
    }
    count = 3 * len(leaves)
    assert any(f"({count} of {count} " in note and "->" in note for note in notes), notes


def test_extras_move_with_their_modules(tmp_path: Path) -> None:
    head = {"base_model.model.model.norm.weight": torch.ones(3), "base_model.model.score.weight": torch.ones(3)}
    first = make(tmp_path, "first", layers("model.language_model.", 2))
    other = make(tmp_path, "other", {**layers("model.", 2), **head})
    (_, moved), _ = align([first, other])
    assert sorted(moved.extras) == ["model.language_model.norm.weight", "score.weight"]


def test_the_tower_with_fitting_shapes_is_chosen(tmp_path: Path) -> None:
    towers = {**layers("visual.", 4, wider=2), **layers("model.language_model.", 3)}
    first = make(tmp_path, "first", towers)
    other = make(tmp_path, "other", layers("model.", 3))
    (_, moved), _ = align([first, other])
    assert all(name.startswith("model.language_model.") for name in moved.sites)


def test_two_towers_alike_are_refused(tmp_path: Path) -> None:
    first = make(tmp_path, "first", {**layers("visual.", 3), **layers("text.", 3)})
    other = make(tmp_path, "other", layers("model.", 3))
    with pytest.raises(InputError, match=r"prefixes tried: .*\(9 of 9\)") as caught:
        align([first, other])
    assert "rename: {from: to}" in caught.value.hint


def test_a_partial_mapping_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path, "first", layers("text.", 2))
    other = make(tmp_path, "other", {**layers("model.", 1), **layers("model.extra.", 2)})
    with pytest.raises(InputError, match="share no module"):
        align([first, other])


def test_shapes_that_differ(tmp_path: Path) -> None:
    first = make(tmp_path, "first", layers("model.", 2))
    other = make(tmp_path, "other", layers("model.", 2, wider=1))
    with pytest.raises(
        InputError, match=r"up_proj: \[out, in\] is \[6, 3\] in first and \[7, 3\] in other \(6 modules differ\): diff"
    ):
        align([first, other])


@pytest.mark.parametrize(
    ("bases", "note"),
    [
        (("org/tiny", "org/tiny"), None),
        (("org/tiny", None), None),
        (("tiny", "org/tiny"), "taken as the same base: tiny, org/tiny"),
        (("org/tiny", "C:\\models\\tiny\\"), "taken as the same base"),
        (("org/tiny", "unsloth/tiny-unsloth-bnb-4bit"), "taken as the same base"),
        (("org/tiny", "other/tiny-bnb-4bit"), "taken as the same base"),
        (("org/tiny", "org/large"), r"the adapters name different bases: org/tiny (a); org/large (b)"),
    ],
)
def test_bases_are_compared_by_their_last_name(tmp_path: Path, bases: tuple[str | None, ...], note: str | None) -> None:
    adapters = [
        make(tmp_path, label, layers("model.", 1), base_model_name_or_path=base)
        for label, base in zip("ab", bases, strict=True)
    ]
    notes = align(adapters)[1]
    assert (notes == []) if note is None else (len(notes) == 1 and note in notes[0])


def test_base_names() -> None:
    assert base_name("/content/gemma3-270m") == base_name("D:\\图\\gemma3-270m") == "gemma3-270m"


def test_revisions_and_duplicates(tmp_path: Path) -> None:
    a = make(tmp_path, "a", layers("model.", 1), revision="v1")
    b = make(tmp_path, "b", layers("model.", 1), revision="v2")
    assert align([a, b])[1] == ["revisions of the base differ: v1 (a), v2 (b)"]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    again = read_adapter(resolve("link", tmp_path), label="link")
    assert align([a, b, again])[1][0] == "input 3 (link) equals input 1 (a): the same file"


def test_layouts_that_do_not_mix(tmp_path: Path) -> None:
    a = make(tmp_path, "a", layers("model.", 1))
    place = folder(tmp_path / "n", {"w_a_000": torch.ones(2, 3), "w_b_000": torch.ones(4, 2)}, {}, file="x.safetensors")
    with pytest.raises(InputError, match="a has the layout peft, n numbered"):
        align([a, read_adapter(resolve(str(place), place), label="n")])
