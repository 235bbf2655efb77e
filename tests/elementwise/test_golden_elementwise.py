"""Published and peer implementations, to the tolerance written in each case."""

from typing import Any

import golden_cases
import pytest
import torch
from golden_cases import Case

from robustmerge_kit import spaces
from robustmerge_kit.draws import KeyedDraws
from robustmerge_kit.factors import InCore, LowRank, decompose
from robustmerge_kit.method import Elementwise, Factor
from robustmerge_kit.methods import breadcrumbs, consensus, drm, emr, lora_lego, pcb, peft_combine, sce, ties

MODULES = (breadcrumbs, consensus, drm, emr, lora_lego, pcb, peft_combine, sce, ties)
METHODS = {method.name: method for module in MODULES for method in module.METHODS}


def dense(delta: spaces.Merged) -> torch.Tensor:
    if isinstance(delta, spaces.Dense):
        return delta.full()
    if isinstance(delta, InCore):
        return delta.core.q_b.double() @ delta.matrix @ delta.core.q_a.double().mT
    return delta.b.double() @ delta.a.double()


def cut(delta: torch.Tensor, output: dict[str, Any] | None) -> torch.Tensor:
    if not output:
        return delta
    low = decompose(LowRank(delta.double(), torch.eye(delta.shape[-1], dtype=torch.float64))).cut(output["rank"])
    return low.b @ low.a


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", golden_cases.names(*METHODS))
def test_golden(name: str, dtype: torch.dtype) -> None:
    case = Case(name)
    method = METHODS[case.spec["method"]]
    parameters = dict(case.spec["parameters"])
    space = case.spec["space"]
    options = spaces.OPTIONS[space or "full"](**parameters.pop(space, {}))
    params = method.params(**parameters)
    identities = [entry["name"] for entry in case.spec["adapters"]]
    stacks = {site: case.stack(site, dtype) for site in case.sites}
    draws = {site: KeyedDraws.of(0, site, identities) for site in case.sites}
    if isinstance(method, Factor):
        deltas = {site: dense(method.merge(stacks[site], params, draws[site])) for site in case.sites}
    else:
        assert isinstance(method, Elementwise)
        represented = {site: spaces.represent(space, options, stacks[site]) for site in case.sites}
        surveyed = None
        if parameters.get("scope") == "global":
            everyone = tuple(range(len(identities)))
            surveyed = spaces.survey_all(
                method,
                lambda: ((represented[site], draws[site], everyone) for site in sorted(case.sites)),
                len(identities),
                params,
            )
        deltas = {
            site: dense(spaces.merge(method, represented[site], stacks[site].weights, params, draws[site], surveyed))
            for site in case.sites
        }
    for site, delta in deltas.items():
        assert case.error(site, cut(delta, case.spec["output"])) < case.tolerance


@pytest.mark.parametrize("name", golden_cases.names("task_arithmetic"))
def test_golden_sum_in_the_common_basis(name: str) -> None:
    case = Case(name)
    if case.spec["space"] != "ctm":
        pytest.skip("only the sum projected on the common basis is judged here")
    options = spaces.CtmOptions(**case.spec["parameters"]["ctm"])
    for site in case.sites:
        stack = case.stack(site)
        delta = spaces.combine(spaces.represent("ctm", options, stack), torch.ones(len(stack)))
        assert case.error(site, dense(delta)) < case.tolerance
