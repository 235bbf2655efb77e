"""What a merge says of itself: the summary, the card, the picture beside it, figures of memory."""

import json
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from small_adapters import run, write_adapters, write_recipe

from robustmerge_kit import memory
from robustmerge_kit.output import picture, summary


def test_the_summary_and_the_card_hold_the_same_figures(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path, 3, dtype=torch.bfloat16)
    receipt = run(write_recipe(tmp_path, adapters, output={"rank": 2}), tmp_path / "out")
    content: dict[str, Any] = json.loads((tmp_path / "out" / "rmkit.json").read_text())
    lines = "\n".join(summary(content, receipt.path))
    card = (tmp_path / "out" / "README.md").read_text()
    totals = content["totals"]
    peak = f"peak memory {content['memory']['peak_resident'] / 1e9:.2f} GB"
    for figure in (f"{totals['retained_energy']:.4%}", f"{totals['rounding_error']:.2e}", "cosine ", peak, "bfloat16"):
        assert figure in lines
        assert figure in card
    assert "4 sites" in lines
    assert "- sites: 4\n" in card
    assert "rank 2" in lines
    assert "- rank: 2;" in card
    assert f"{content['timings']['total']:.2f} s" in lines
    assert f"- time: {content['timings']['total']:.1f} s" in card
    assert "warning: the rank limit loses" in lines


def test_a_model_has_no_rank(tmp_path: Path) -> None:
    receipt = run(write_recipe(tmp_path, write_adapters(tmp_path, 1)), tmp_path / "out")
    output = {**receipt.content["output"], "kind": "model"}
    first, second, *_ = summary({**receipt.content, "output": output}, Path("x"))
    assert first == "merged the base and 1 adapter at 4 sites into x"
    assert second.startswith("linear, float32, ")


def test_the_card_shows_the_picture_beside_it(tmp_path: Path) -> None:
    receipt = run(write_recipe(tmp_path, write_adapters(tmp_path, 2)), tmp_path / "out")
    assert "](rmkit.svg)" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "rmkit.svg").read_text() == picture(receipt.content)


def test_without_a_card_there_is_no_picture(tmp_path: Path) -> None:
    run(write_recipe(tmp_path, write_adapters(tmp_path, 2)), tmp_path / "out", card=False)
    assert not {"rmkit.svg", "README.md"} & {path.name for path in (tmp_path / "out").iterdir()}


@pytest.mark.skipif(not memory.anonymous(), reason="this system does not tell")
def test_memory_is_what_the_kernel_counts() -> None:
    before = memory.AnonymousPeak()
    before.look()
    held = mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(bytes(32 << 20))
    after = memory.AnonymousPeak()
    after.look()
    assert 28 << 20 < after.most - before.most < 64 << 20
    resident = memory.peak_resident()
    assert resident is not None
    assert resident >= memory.anonymous() >= len(held)


def test_looks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    monkeypatch.setattr(memory, "anonymous", lambda: looks.append(1) or 5)
    peak = memory.AnonymousPeak()
    for _ in range(1000):
        peak.look()
    assert peak.most == 5
    assert len(looks) < 100
