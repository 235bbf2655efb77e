"""Recipe + inputs (headers only) -> Plan: every output tensor with its name, shape and dtype, and how it is made."""

from .build import make_plan
from .gather import Inputs, gather, labels
from .llava import check_output_name
from .profiles import serving_hint
from .ranks import choose_ranks, settle_ranks
from .steps import ExtraStep, Member, Plan, SiteStep
from .targets import Target

__all__ = [
    "ExtraStep",
    "Inputs",
    "Member",
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
