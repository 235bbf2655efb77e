"""Anonymous memory does not grow with the number of layers."""

import threading
import time
from pathlib import Path

import children
import pytest
import torch
from small_adapters import PREFIX, sites, write_adapter, write_recipe

RANK, WIDTH, ADAPTERS = 16, 768, 3
SITE_BYTES = 4 * RANK * 2 * WIDTH * ADAPTERS


def anonymous() -> int:
    """Anonymous memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def measured(recipe: str, out: str, report: str) -> None:
    """Merge and write down anonymous memory before, and its peak during the merge."""
    from robustmerge_kit.merge import merge
    from robustmerge_kit.recipe import load_recipe
    from robustmerge_kit.resources import Resources

    torch.set_num_threads(1)
    before, peak, done = anonymous(), 0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, anonymous())
            time.sleep(0.001)

    sampler = threading.Thread(target=sample)
    sampler.start()
    merge(load_recipe(Path(recipe)), Path(out), resources=Resources(workers=2, memory=8 << 20))
    done.set()
    sampler.join()
    Path(report).write_text(f"{before} {peak}")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc/self/status")
@pytest.mark.parametrize("method", ["robustmerge", "svd"])
def test_anonymous_memory_is_flat_in_the_number_of_layers(method: str, tmp_path: Path) -> None:
    peaks: dict[int, int] = {}
    growth: dict[int, int] = {}
    for layers in (32, 64, 128):
        place = tmp_path / str(layers)
        where = sites(layers, {"q_proj": (WIDTH, WIDTH)})
        a, b = torch.randn(RANK, WIDTH), torch.randn(WIDTH, RANK)
        tensors = {f"{PREFIX}{site}.lora_{half}.weight": value for site in where for half, value in (("A", a), ("B", b))}
        tensors = {name: value.clone() for name, value in tensors.items()}
        adapters = [write_adapter(place / f"t{i}", where=where, tensors=tensors, r=RANK) for i in range(ADAPTERS)]
        recipe = write_recipe(place, adapters, method, **({"output": {"rank": RANK}} if method == "svd" else {}))
        report = place / "report"
        assert children.end(children.start(measured, str(recipe), str(place / "out"), str(report))) == 0
        before, peaks[layers] = map(int, report.read_text().split())
        growth[layers] = peaks[layers] - before
    print({layers: f"{peak / 1e6:.0f} MB, {growth[layers] / 1e6:.0f} MB above start" for layers, peak in peaks.items()})
    assert max(peaks.values()) < 1.1 * min(peaks.values())
    assert growth[128] - growth[32] < 0.25 * 96 * SITE_BYTES
