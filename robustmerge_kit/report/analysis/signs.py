"""Where updates have opposite signs: counted entry by entry, in blocks of rows that are made and forgotten."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from ...factors import FactorStack

ROWS = 256
"""Rows looked at; a site with no more than these is counted exactly."""

BLOCK_ENTRIES = 1 << 20
"""Entries of all updates in memory at a time."""


@dataclass(frozen=True)
class SignCounts:
    """Signs of the entries in the rows looked at.

    rows: how many. conflict: share of opposite signs among entries where neither is 0, None where there is none.
    error: standard errors of the conflicts, 0 when all rows were looked at. cancelled: see `records.Signs`.

    Shapes: conflict, error (n, n); NaN where no entry counts.
    """

    rows: int
    conflict: Float[torch.Tensor, "n n"]
    error: Float[torch.Tensor, "n n"]
    cancelled: float | None


def count_signs(stack: FactorStack) -> SignCounts:
    """Compare the signs of the updates' entries, two by two, in `ROWS` rows, the same for every site of that height.

    Per row, with X = sign(D) (n x d_in): X X^T counts equal minus opposite signs, |X| |X|^T the entries that count.

    Shapes: stack of n adapters at one site.
    """
    chosen = _rows(stack.d_out).to(stack.b[0].device)
    n = len(stack)
    a = [stack.folded_a(t) for t in range(n)]
    b = [stack.folded_b(t)[chosen] for t in range(n)]
    block = max(1, BLOCK_ENTRIES // (n * stack.d_in))
    balances: list[torch.Tensor] = []
    counted: list[torch.Tensor] = []
    magnitude = summed = 0.0
    x = a[0].new_empty(n, min(block, len(chosen)), stack.d_in)
    for start in range(0, len(chosen), block):
        part = x[:, : min(block, len(chosen) - start)]
        for t in range(n):
            torch.matmul(b[t][start : start + block], a[t], out=part[t])
        summed += _total(part.sum(0).abs_())
        signs = part.sign().movedim(1, 0)
        magnitude += _total(part.abs_())
        balances.append(signs @ signs.mT)
        counted.append(_counted(signs, balances[-1]))
    opposite, entries = _opposite(torch.cat(balances).double().cpu(), torch.cat(counted).double().cpu())
    conflict = opposite.sum(0) / entries.sum(0)
    return SignCounts(
        rows=len(chosen),
        conflict=conflict,
        error=_error(opposite, entries, conflict, stack.d_out),
        cancelled=1.0 - summed / magnitude if magnitude else None,
    )


def _total(x: torch.Tensor) -> float:
    """The sum of all entries, rows first: float64 is only needed for many terms, and slow."""
    return float(x.sum(-1).sum(dtype=torch.float64))


def _counted(
    signs: Float[torch.Tensor, "rows n d_in"], balance: Float[torch.Tensor, "rows n n"]
) -> Float[torch.Tensor, "rows n n"]:
    """Entries where neither of two is 0; the diagonal of the balance tells whether any is."""
    full = float(signs.shape[-1])
    if bool((balance.diagonal(dim1=-2, dim2=-1) == full).all()):
        return torch.full_like(balance, full)
    there = signs.abs()
    return there @ there.mT


def _opposite(balance: torch.Tensor, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (entries - balance) / 2, entries


def _error(opposite: torch.Tensor, entries: torch.Tensor, conflict: torch.Tensor, d_out: int) -> torch.Tensor:
    """Standard error of a ratio estimated from rows drawn without replacement."""
    rows = len(opposite)
    if rows == d_out:
        return torch.zeros_like(conflict)
    spread = (opposite - conflict * entries).square().sum(0) / (rows - 1)
    return (spread / rows * (1 - rows / d_out)).sqrt() / entries.mean(0)


def _rows(d_out: int) -> torch.Tensor:
    """Which rows to look at: all, or drawn without replacement, since evenly spaced ones would meet the same place of every
    attention head.
    """
    if d_out <= ROWS:
        return torch.arange(d_out)
    return torch.randperm(d_out, generator=torch.Generator().manual_seed(0))[:ROWS].sort().values
