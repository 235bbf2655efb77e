"""Recipe + inputs (headers only) -> Plan: every output tensor with its name, shape and dtype, and how it is made."""

from .build import make_plan
from .changes import Change, Part
from .fold import DEFAULT_LAYOUT, Copy, Fold, Layout, OutputFile
from .gather import Inputs, gather, labels
from .llava import check_output_name
from .places import Place
from .profiles import serving_hint
from .ranks import choose_ranks, settle_ranks
from .steps import ExtraStep, Member, Plan, SiteStep
from .targets import Target

__all__ = [
    "DEFAULT_LAYOUT",
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
    "gather",
    "labels",
    "make_plan",
    "serving_hint",
    "settle_ranks",
]
