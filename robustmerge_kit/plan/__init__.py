"""Recipe + inputs (headers only) -> Plan: every output tensor with its name, shape and dtype, and how it is made."""

from .build import make_plan
from .changes import Change, Part
from .division import divide
from .fold import DEFAULT_LAYOUT, TILE, Copy, Fold, Layout, OutputFile
from .forecast import job_bytes, largest_job, peak_bytes
from .gather import Inputs, gather, labels
from .llava import check_output_name
from .places import Place
from .profiles import serving
from .ranks import choose_ranks, settle_ranks
from .steps import BaseWeight, ExtraStep, Member, Plan, SiteStep
from .targets import Target

__all__ = [
    "DEFAULT_LAYOUT",
    "TILE",
    "BaseWeight",
    "Change",
    "Copy",
    "ExtraStep",
    "Fold",
    "Inputs",
    "Layout",
    "Member",
    "OutputFile",
    "Part",
    "Place",
    "Plan",
    "SiteStep",
    "Target",
    "check_output_name",
    "choose_ranks",
    "divide",
    "gather",
    "job_bytes",
    "labels",
    "largest_job",
    "make_plan",
    "peak_bytes",
    "serving",
    "settle_ranks",
]
