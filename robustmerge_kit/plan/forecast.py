"""How much memory a plan will take, before anything is read."""

from __future__ import annotations

import heapq

from .changes import Change
from .fold import TILE, Copy
from .steps import ExtraStep, Plan, SiteStep

IMPORTED = 170 << 20
"""Anonymous memory of the process before it merges: Python, torch and the package."""


def job_bytes(job: SiteStep | Change | Copy) -> int:
    """Estimated memory of one job of a fold: tiles of the base, and a site's factors and what is made of them."""
    tiles = 4 * 4 * TILE
    return tiles + (job.fold_bytes if isinstance(job, SiteStep) else 0)


def largest_job(plan: Plan) -> int:
    """Estimated memory of the largest job, in bytes."""
    return max(_jobs(plan))


def peak_bytes(plan: Plan, workers: int, memory: int) -> int:
    """Forecast of the anonymous memory of a merge: as many jobs at a time as `workers` and the budget `memory` admit.

    A job larger than the budget runs alone.
    """
    at_once = sum(heapq.nlargest(2 * workers + 1, _jobs(plan)))
    return IMPORTED + max(largest_job(plan), min(memory, at_once))


def _jobs(plan: Plan) -> list[int]:
    if plan.fold is None:
        steps: list[SiteStep | ExtraStep] = [*plan.steps, *plan.extras]
        return [step.work_bytes for step in steps]
    return [job_bytes(job) for job in (*plan.steps, *plan.fold.changes, *plan.fold.copies)]
