"""subspace_boost (post): raise the weak singular values of the merged delta.

Paper: arXiv 2506.16506 (reference code arcee-ai/mergekit 328f4c6b).

    over the numerical rank: c = the first j with S_1 + .. + S_j >= beta sum S;  S_j <- max(S_j, S_c)

Parameters: `beta` in (0, 1], required.
Edge cases: beta 1 changes nothing. The published 0.01 makes c = 1 whenever the rank is at most 100: every value becomes the
top one, and cutting the rank afterwards keeps arbitrary directions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from ..factors import Core, Spectral
from ..method import Params
from .step import Post


class SubspaceBoost(Params):
    """Settings of subspace_boost."""

    beta: Annotated[float, Field(gt=0, le=1)]


def boost(delta: Spectral, core: Core, params: SubspaceBoost) -> Spectral:
    """Lift every singular value below the cutoff to it.

    Source: arXiv 2506.16506.
    """
    cumulated = delta.s.cumsum(-1)
    first = (cumulated < params.beta * cumulated[..., -1:]).sum(-1, keepdim=True)
    floor = delta.s.gather(-1, first)
    return replace(delta, s=torch.where(delta.s > 0, delta.s.maximum(floor), 0.0))


SUBSPACE_BOOST = Post(name="subspace_boost", paper="2506.16506", params=SubspaceBoost, apply=boost, flat_spectrum=True)
