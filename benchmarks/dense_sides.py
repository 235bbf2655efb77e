"""The dense ways to the same results, each in a process of its own: `dense_sides.py svd|peft|ties HIDDEN INNER RESULT`.

    svd     torch.linalg.svd of the sum of the deltas of one HIDDEN x HIDDEN site
    peft    PEFT's add_weighted_adapter(combination_type="svd") on a model of one such layer
    ties    mergekit's merge_tensors("ties") on the deltas of one HIDDEN x INNER site

The factors are those of cases.py. Prints the seconds of the step named, without imports and without making its inputs; the
result is saved for comparison.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cases import Case, factors
from torch import Tensor

SQUARE, WIDE = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
DENSITY = 0.2


def pairs(case: Case, site: str) -> list[tuple[Tensor, Tensor]]:
    """(A, B) of every adapter at a site, in float32."""
    stored = (factors(case, adapter) for adapter in range(1, case.adapters + 1))
    names = [f"base_model.model.{site}.lora_{factor}.weight" for factor in "AB"]
    return [(each[names[0]].float(), each[names[1]].float()) for each in stored]


def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def svd(case: Case) -> tuple[float, Tensor]:
    total = torch.zeros(case.hidden, case.hidden)
    for a, b in pairs(case, SQUARE):
        total += case.alpha / case.rank * b @ a

    def work() -> Tensor:
        u, s, vh = torch.linalg.svd(total, full_matrices=False)
        return (u[:, : case.rank] * s[: case.rank]) @ vh[: case.rank]

    return timed(work)


def peft(case: Case) -> tuple[float, Tensor]:
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(torch.nn.Linear(case.hidden, case.hidden, bias=False))
    config = LoraConfig(r=case.rank, lora_alpha=case.alpha, target_modules=["0"])
    adapted = get_peft_model(model, config, adapter_name="task1")
    layer = adapted.base_model.model[0]
    names = [f"task{adapter}" for adapter in range(1, case.adapters + 1)]
    with torch.no_grad():
        for name, (a, b) in zip(names, pairs(case, SQUARE), strict=True):
            if name not in adapted.peft_config:
                adapted.add_adapter(name, config)
            layer.lora_A[name].weight.copy_(a)
            layer.lora_B[name].weight.copy_(b)

        def work() -> Tensor:
            adapted.add_weighted_adapter(names, [1.0] * len(names), "merged", combination_type="svd", svd_rank=case.rank)
            return layer.lora_B["merged"].weight

        seconds, _ = timed(work)
        return seconds, layer.get_delta_weight("merged")


def ties(case: Case) -> tuple[float, Tensor]:
    from mergekit.merge_methods import merge_tensors

    deltas = [case.alpha / case.rank * b @ a for a, b in pairs(case, WIDE)]
    tensors = [torch.zeros_like(deltas[0]), *deltas]
    options = {"density": DENSITY, "weight": [1.0] * len(deltas)}
    return timed(lambda: merge_tensors(tensors, "ties", base_index=0, parameters=options))


SIDES = {"svd": svd, "peft": peft, "ties": ties}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("hidden", type=int)
    parser.add_argument("inner", type=int)
    parser.add_argument("result", type=Path, help="file the merged delta is saved to")
    given = parser.parse_args()
    seconds, merged = SIDES[given.side](Case(layers=1, hidden=given.hidden, inner=given.inner))
    torch.save(merged.detach(), given.result)
    print(seconds)


if __name__ == "__main__":
    main()
