"""The picture of a model card: well-formed whatever the names are, cells where they belong, nothing drawn for no reason."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustmerge_kit.output.grid import lay_out
from robustmerge_kit.output.picture import picture

SVG = "{http://www.w3.org/2000/svg}"

LLAMA = [f"model.layers.{layer}.{module}" for layer in range(3) for module in ("self_attn.q_proj", "mlp.up_proj")]


def receipt(sites: Sequence[str], kept: Sequence[float] | None = None) -> dict[str, Any]:
    kept = kept or [1.0] * len(sites)
    listed = [{"site": site, "norm": 1.0 + i, "retained": kept[i]} for i, site in enumerate(sites)]
    return {"sites": listed, "totals": {"norm": 12.34, "retained_energy": sum(kept) / len(kept)}}


def cells(text: str) -> dict[str, str]:
    """Colour by the hover text of every cell."""
    root = ET.fromstring(text)
    return {str(rect.findtext(f"{SVG}title")): rect.attrib["fill"] for rect in root.iter(f"{SVG}rect") if len(rect)}


def words(text: str) -> list[str]:
    return [str(each.text) for each in ET.fromstring(text).iter(f"{SVG}text")]


def test_every_site_is_a_cell_with_its_norm_and_more_is_darker() -> None:
    found = cells(picture(receipt(LLAMA)))
    assert list(found) == [f"{site}: {i + 1}" for i, site in enumerate(LLAMA)]
    assert found[f"{LLAMA[-1]}: 6"] == "#0b3c5d"
    lightness = [sum(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in found.values()]
    assert lightness == sorted(lightness, reverse=True)


def test_energy_is_drawn_only_where_some_was_cut() -> None:
    whole, cut = picture(receipt(LLAMA)), picture(receipt(LLAMA, [1.0, 0.9, 0.8, 1.0, 1.0, 1.0]))
    assert words(whole)[0] == "Norm of the merged update, 12.3 in all"
    assert not any("Energy" in word for word in words(whole))
    assert "Energy kept by the rank limit, 95.0% in all" in words(cut)
    assert cells(cut)[f"{LLAMA[2]}: 80.0%"] == "#eef3f8"


@pytest.mark.parametrize(
    ("sites", "panels"),
    [
        (LLAMA, [("model.layers", ("0", "1", "2"), ("self_attn.q_proj", "mlp.up_proj"))]),
        (["layers.10.a", "layers.9.a"], [("layers", ("9", "10"), ("a",))]),
        (["lm_head", "h.0.c_attn"], [("h", ("0",), ("c_attn",)), ("", ("",), ("lm_head",))]),
        (
            ["down_blocks.1.attentions.0.to_q", "down_blocks.0.attentions.2.to_q", "mid_block.attentions.0.to_q"],
            [("down_blocks.*.attentions", ("0.2", "1.0"), ("to_q",)), ("mid_block.attentions", ("0",), ("to_q",))],
        ),
        (["lora_unet_up_blocks_1_attentions_2_proj_in"], [("lora_unet_up_blocks_*_attentions", ("1.2",), ("proj_in",))]),
        (["layers.0", "layers.1"], [("layers", ("0", "1"), ("layers",))]),
        (["w_000", "w_001"], [("w", ("000", "001"), ("w",))]),
        (["7"], [("numbered", ("7",), ("all",))]),
        (["layers." + "9" * 5000 + ".q"], [("layers", ("9" * 5000,), ("q",))]),
    ],
)
def test_sites_stand_by_layer_and_module(sites: list[str], panels: list[tuple[str, tuple[str, ...], tuple[str, ...]]]) -> None:
    assert [(panel.name, panel.layers, panel.modules) for panel in lay_out(sites)] == panels


def test_experts_share_a_row_where_each_would_have_its_own() -> None:
    sites = [f"model.layers.{layer}.experts.{expert}.up_proj" for layer in range(2) for expert in range(49)]
    (panel,) = lay_out(sites)
    assert panel.modules == ("experts.*.up_proj",)
    assert panel.cells[0, 1] == tuple(range(49, 98))
    found = cells(picture(receipt(sites)))
    root = sum((i + 1) ** 2 for i in range(49)) ** 0.5
    assert f"experts.*.up_proj, layer 0, 49 sites: {root:.3g}" in found
    assert set(found.values()) != {"#0b3c5d"}, "the scale ends at the largest cell, not at the largest site"


def test_a_hundred_modules_are_cut_and_counted() -> None:
    sites = [f"layers.0.m{i}" for i in range(100)]
    assert "and 36 more modules, see rmkit.json" in words(picture(receipt(sites)))


@pytest.mark.parametrize("kept", [[0.5], [1.0]])
def test_one_site_and_a_zero_merge(kept: list[float]) -> None:
    content = receipt(["lm_head"], kept)
    content["sites"][0]["norm"] = 0.0
    assert "lm_head: 0" in cells(picture(content))


def test_no_text_leaves_the_picture() -> None:
    text = picture(receipt(["x" * 500, "layers.100000000000.q", *(f"encoder.layers.{i}.{'y' * 90}" for i in range(100))]))
    assert all(len(word) <= 110 for word in words(text))
    assert {
        float(rect.attrib["x"]) + float(rect.attrib["width"]) <= 745
        for rect in ET.fromstring(text).iter(f"{SVG}rect")
        if len(rect)
    } == {True}


@given(st.lists(st.text(st.characters(), max_size=40), min_size=1, max_size=8, unique=True))
def test_names_are_text_and_never_markup(sites: list[str]) -> None:
    text = picture(receipt(sites))
    text.encode()
    assert len(cells(text)) >= 1
    assert {each.tag.removeprefix(SVG) for each in ET.fromstring(text).iter()} <= {"svg", "style", "rect", "text", "title"}


def test_hostile_names() -> None:
    sites = ["</text><script>alert(1)</script>", "a\x00b\ud800]]>&<!--", 'x" onload="alert(1)']
    text = picture(receipt(sites))
    assert "<script" not in text
    assert any(title.startswith("</text><script>alert(1)</script>: ") for title in cells(text))
    assert "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}]]>&<!--: 2" in cells(text)
