"""How many directions to keep at every site: a number, an energy, or a budget over all sites."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float


def energy_rank(s: Float[torch.Tensor, " k"], energy: float) -> int:
    """The smallest k >= 1 with sum_{j<=k} S_j^2 >= energy * sum S_j^2; energy 1 keeps every value that is not zero.

    Shapes: s (k,) descending, zero beyond the numerical rank.
    """
    if energy >= 1:
        return max(1, int((s > 0).sum()))
    cumulated = (s.double() ** 2).cumsum(-1)
    return max(1, min(len(s), int((cumulated < energy * cumulated[-1:]).sum()) + 1))


def retained(s: Float[torch.Tensor, " k"], k: int) -> float:
    """sum_{j<=k} S_j^2 / sum S_j^2, the energy that a cut to rank k keeps; 1 for a zero delta."""
    squares = s.double() ** 2
    lost = float(squares[k:].sum())
    return 1.0 - lost / float(squares.sum()) if lost else 1.0


def spend_budget(
    spectra: Mapping[str, Float[torch.Tensor, " _"]],
    shapes: Mapping[str, tuple[int, int]],
    *,
    average: float,
    score: Literal["relative", "absolute"] = "relative",
    cost: Literal["rank", "params"] = "rank",
    cap: int | None = None,
) -> dict[str, int]:
    """Ranks per site that spend `average` times the number of sites where the singular values are largest.

    Every site with a delta gets 1. What is left goes, one direction at a time, to the largest S_j^2 / ||D||_F^2 of its site
    (`relative`) or S_j^2 (`absolute`); `params` divides that by d_out + d_in and counts parameters. Ties go by site name,
    then by index. A direction that no longer fits closes its site. A site without a delta gets 0.

    Shapes: spectra[site] (k,) descending, zero beyond the numerical rank; shapes[site] (d_out, d_in).
    """
    price = {site: sum(shapes[site]) if cost == "params" else 1 for site in spectra}
    worth = {site: _worth(s, score, price[site]) for site, s in spectra.items()}
    worth = {site: values[:cap] for site, values in worth.items()}
    ranks = {site: min(1, len(values)) for site, values in worth.items()}
    left = average * sum(price.values()) - sum(price[site] * k for site, k in ranks.items())
    offers = [(-values[1], site, 1) for site, values in worth.items() if len(values) > 1]
    heapq.heapify(offers)
    while offers:
        _, site, index = heapq.heappop(offers)
        if price[site] > left:
            continue
        left -= price[site]
        ranks[site] = index + 1
        if index + 1 < len(worth[site]):
            heapq.heappush(offers, (-worth[site][index + 1], site, index + 1))
    return ranks


def _worth(s: torch.Tensor, score: str, price: int) -> list[float]:
    squares = s[s > 0].double() ** 2
    if score == "relative":
        squares = squares / squares.sum()
    return torch.as_tensor(squares / price).tolist()
