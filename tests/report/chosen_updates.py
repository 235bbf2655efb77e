"""Adapters on disk whose updates are known: singular vectors and values of one's choice, or Gaussian factors."""

from pathlib import Path

import torch
from small_adapters import PREFIX, write_adapter, write_recipe
from torch import Tensor

from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report.analysis import Analysis, analyze, parse_candidates

SITE = "model.layers.0.q_proj"
D_OUT, D_IN = 14, 12
SHAPES = {"model.layers.0.q_proj": (14, 12), "model.layers.1.q_proj": (14, 12), "model.layers.1.up_proj": (10, 5)}
RANKS = (3, 2, 4)


def basis(rows: int, columns: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=draw, dtype=torch.float64))[0]


U, V = basis(D_OUT, 9, 1), basis(D_IN, 9, 2)
S = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)


def delta(u: Tensor = U[:, :3], s: Tensor = S, v: Tensor = V[:, :3]) -> tuple[Tensor, Tensor]:
    """B and A of an update with these singular vectors and values, at scale 1."""
    return u * s, v.mT


def write(place: Path, name: str, pairs: dict[str, tuple[Tensor, Tensor]], alpha: float | None = None) -> Path:
    tensors: dict[str, Tensor] = {}
    ranks = {a.shape[0] for _, a in pairs.values()}
    for site, (b, a) in pairs.items():
        tensors[f"{PREFIX}{site}.lora_A.weight"] = a.clone(memory_format=torch.contiguous_format)
        tensors[f"{PREFIX}{site}.lora_B.weight"] = b.clone(memory_format=torch.contiguous_format)
    r = max(ranks)
    where = {site: (b.shape[0], a.shape[1]) for site, (b, a) in pairs.items()}
    return write_adapter(place / name, tensors=tensors, where=where, r=r, alpha=alpha or float(r))


def of_two(
    place: Path, one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor], method: str = "linear", compare: str = ""
) -> Analysis:
    folders = [write(place, "one", {SITE: one}), write(place, "two", {SITE: two})]
    recipe = load_recipe(write_recipe(place, folders, method))
    return analyze(recipe, parse_candidates(compare) if compare else [])


def folders(place: Path, shapes: dict[str, tuple[int, int]]) -> list[Path]:
    """An adapter of each of RANKS, alpha twice the rank."""
    made: list[Path] = []
    for t, r in enumerate(RANKS):
        draw = torch.Generator().manual_seed(t)
        pairs = {
            site: (torch.randn(d_out, r, generator=draw), torch.randn(r, d_in, generator=draw))
            for site, (d_out, d_in) in shapes.items()
        }
        made.append(write(place, f"adapter{t}", pairs, alpha=2.0 * r))
    return made
