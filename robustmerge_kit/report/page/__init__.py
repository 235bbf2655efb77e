"""`report.html`: an analysis as one file that needs nothing else, no network, no font, and for the verdict no script."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from ..analysis.records import Analysis
from . import curves, sections
from .explorer import explorer
from .markup import Markup, element
from .matrices import matrices

__all__ = ["render_page"]

_UNSAFE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def render_page(report: Analysis) -> str:
    """The report as HTML. Names of adapters and sites are text wherever they appear; no script but the page's own can run."""
    style, script = _asset("page.css"), _asset("page.js")
    data = json.dumps(explorer(report), separators=(",", ":"), ensure_ascii=True, allow_nan=False).translate(_UNSAFE)
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"rmkit {report.rmkit}"),
        element("link", rel="icon", href="data:,"),
        element("title", f"{report.recipe}: analysis"),
        element("style", style),
    ]
    body = [
        element("main", *_body(report)),
        element(
            "footer",
            element("p", f"rmkit {report.rmkit}. ", element("code", "report.json"), " holds every figure of this page."),
        ),
        element("script", Markup(data), type="application/json", id="data"),
        element("script", script),
    ]
    page = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _body(report: Analysis) -> list[Markup]:
    noscript = element(
        "noscript", element("p", "The heat maps and the table of sites are drawn by a script, which is switched off here.")
    )
    parts = [
        ("Verdict", "", [sections.verdict(report)]),
        ("Adapters", "", [sections.adapters(report)]),
        ("Between two adapters", "", [matrices(report), sections.pairs(report)]),
        ("Layer by layer", _EXPLORER, [noscript, element("div", id="explorer")]),
        (
            "What the merge keeps",
            _KEEPS,
            [sections.methods(report), curves.grid([curves.energy(report)]), sections.tasks(report)],
        ),
        ("Direction robustness", _ROBUSTNESS, [curves.robustness(report)]),
        ("Principal angles", _ANGLES, [curves.angles(report)]),
        ("Spectra before and after pruning and scaling", _SPECTRA, [curves.spectra(report)]),
        ("Values of the factors", _VALUES, [curves.factor_values(report)]),
        ("Thresholds and exactness", "", [sections.fine_print(report)]),
    ]
    made = [
        element("section", element("h2", title), *([element("p", said)] if said else []), *content)
        for title, said, content in parts
        if any(content)
    ]
    return [sections.heading(report), *made]


_EXPLORER = "One cell per site. Choose what to look at; the table below the map follows. A cell says its value when pointed at."
_KEEPS = (
    "Destroyed is the share of an adapter's update that no rescaling of the merge gives back. Projection 1 means it is there "
    "in full size. Crosstalk is what the others add in its own directions. Invented lies outside of everybody's directions."
)
_ROBUSTNESS = (
    "Each adapter's singular directions are matched one to one with those of the merged update. Top is the direction of the "
    "largest singular value, rest the mean of all others."
)
_ANGLES = (
    "The k-th smallest angle between the subspaces of two updates, mean over the sites: 0° is a shared direction, 90° none."
)
_SPECTRA = "Singular values of every adapter's update, mean over the sites, before and after RobustMerge's pruning and scaling."
_VALUES = "Values of A and B in units of their root mean square; what lies beyond the ends counts in the outermost bins."


def _asset(name: str) -> Markup:
    return Markup((files(__package__ or __name__) / name).read_text(encoding="utf-8"))


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
