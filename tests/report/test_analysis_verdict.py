"""The verdict: every rule on either side of its threshold, every sentence with its numbers, real adapters judged sensibly."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from analysis_samples import made_up
from small_adapters import write_recipe

from robustmerge_kit.recipe import load_recipe
from robustmerge_kit.report.analysis import Analysis, analyze, parse_candidates
from robustmerge_kit.report.analysis.advice import REASONS
from robustmerge_kit.report.analysis.case import bound
from robustmerge_kit.report.analysis.records import Direction, Finding, Subspaces
from robustmerge_kit.report.analysis.thresholds import THRESHOLDS
from robustmerge_kit.report.analysis.verdict import MOST, RULES, verdict

# --- a report about which there is nothing to say ---------------------------------------------------------------------

QUIET = Subspaces(overlap=0.01, smallest=80, median=85, largest=89)
FAITHFUL = Direction(left=0.9, right=0.9, ratio=0.9)


def plain(adapters: int = 2, methods: tuple[str, ...] = ("linear", "karcher")) -> Analysis:
    """Two unrelated updates of one size, merged well; at 2 sites of 4096 x 4096."""
    report = made_up(layers=1, adapters=adapters, modules=("a", "b"), methods=methods)
    pair: dict[str, Any] = {"cosine": 0.08, "norm_ratio": 1.0, "left": QUIET, "right": QUIET, "sign_conflict": 0.5}
    task: dict[str, Any] = {"cosine": 0.7, "projection": 1.0, "crosstalk": 0.1, "destroyed": 0.01, "top": FAITHFUL}

    def settle(part: Any) -> Any:
        pairs = tuple(each.model_copy(update=pair) for each in part.pairs)
        updates = tuple(u and u.model_copy(update={"norm": 1.0, "spectrum": (2.0, 1.0, 0.5)}) for u in part.updates)
        merges = tuple(
            merge.model_copy(
                update={"kept": 1.0, "invented": 0.0, "tasks": tuple(t and t.model_copy(update=task) for t in merge.tasks)}
            )
            for merge in part.merges
        )
        return part.model_copy(update={"pairs": pairs, "updates": updates, "merges": merges, "norm_ratio": 1.0})

    # The module outside the layers lacks an adapter; it stays as a site without a second update.
    return report.model_copy(update={"totals": settle(report.totals), "sites": tuple(map(settle, report.sites))})


def judge(report: Analysis) -> list[Finding]:
    return verdict(report.adapters, report.methods, report.totals, report.sites)


def changed(report: Analysis, path: str, value: Any) -> Analysis:
    """The report with one figure replaced; `path` as findings spell it."""
    steps = [int(step) if step.isdigit() else step for step in re.findall(r"\w+", path)]

    def put(part: Any, rest: list[str | int]) -> Any:
        if not rest:
            return value
        head, *tail = rest
        if isinstance(head, int):
            return (*part[:head], put(part[head], tail), *part[head + 1 :])
        return part.model_copy(update={head: put(getattr(part, head), tail)})

    return put(report, steps)


def get(report: Any, path: str) -> Any:
    for step in re.findall(r"\w+", path):
        report = report[int(step)] if step.isdigit() else getattr(report, step)
    return report


def rules(report: Analysis) -> set[str]:
    return {found.rule for found in judge(report)}


def test_of_a_quiet_report_only_good_things_are_said():
    assert rules(plain()) == {"balanced", "rank_enough"}


# --- either side of every threshold -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edge:
    """A rule, the threshold it hangs on, and how a figure gets into the report. `above`: it speaks from there upwards."""

    rule: str
    threshold: str
    put: Callable[[float], Analysis]
    above: bool = True
    gap: float = 1e-6


def at(path: str, **keys: Any) -> Callable[[float], Analysis]:
    return lambda value: changed(plain(**keys), path, value)


def overlap(side: str, floor: float = 0.15) -> Callable[[float], Analysis]:
    return lambda value: changed(plain(), f"totals.pairs[0].{side}.overlap", value)


def narrow(value: float) -> Analysis:
    """Overlap 0.3 of updates of rank 8 at sites of such a width that chance is 0.3 / value."""
    report = changed(plain(), "totals.pairs[0].left.overlap", 0.3)
    d_out = 8 * value / 0.3
    sites = tuple(site.model_copy(update={"d_out": d_out}) for site in report.sites)
    return report.model_copy(update={"sites": sites})


def norms(value: float) -> Analysis:
    return changed(changed(plain(), "totals.norm_ratio", value), "totals.updates[0].norm", value)


def steep(value: float) -> Analysis:
    return changed(plain(), "totals.updates[1].spectrum", (value, 1.0, 0.5))


def destroys(value: float) -> Analysis:
    """The recipe's method destroys 0.9 of both, the other one `value` less."""
    report = plain()
    for t in range(2):
        report = changed(report, f"totals.merges[0].tasks[{t}].destroyed", 0.9)
        report = changed(report, f"totals.merges[1].tasks[{t}].destroyed", 0.9 - value)
    return report


def turns(value: float) -> Analysis:
    """The recipe's method finds the strongest directions with 0.5, the other one `value` better."""
    report = plain()
    for t in range(2):
        for m, cosine in enumerate((0.5, 0.5 + value)):
            report = changed(report, f"totals.merges[{m}].tasks[{t}].top", Direction(left=cosine, right=cosine, ratio=1))
    return report


EDGES = [
    Edge("untrained", "untrained", at("totals.updates[1].norm"), above=False),
    Edge("opposed", "opposed", at("totals.pairs[0].cosine"), above=False),
    Edge("try_election", "opposed", at("totals.pairs[0].cosine"), above=False),
    Edge("opposed_site", "opposed_site", at("sites[1].pairs[0].cosine"), above=False),
    Edge("signs", "signs", at("totals.pairs[0].sign_conflict")),
    Edge("related", "related", at("totals.pairs[0].cosine")),
    Edge("try_average", "related", at("totals.pairs[0].cosine", methods=("ties",))),
    Edge("same", "same", at("totals.pairs[0].cosine")),
    Edge("collide", "collide", overlap("left")),
    Edge("collide", "collide", overlap("right")),
    Edge("collide", "collide_chance", narrow),
    Edge("try_separation", "collide", overlap("right")),
    Edge("try_sum", "apart", at("totals.pairs[0].cosine"), above=False),
    Edge("norm_ratio", "norm_ratio", norms),
    Edge("try_balance", "norm_ratio", norms),
    Edge("rank_enough", "kept", at("totals.merges[0].kept")),
    Edge("destroyed", "destroyed", at("totals.merges[0].tasks[1].destroyed")),
    Edge("try_others", "destroyed", at("totals.merges[0].tasks[1].destroyed", methods=("linear",))),
    Edge("turned", "turned", at("totals.merges[0].tasks[1].top.left"), above=False),
    Edge("turned", "turned", at("totals.merges[0].tasks[0].top.right"), above=False),
    Edge("invented", "invented", at("totals.merges[0].invented")),
    Edge("shrunk", "shrunk", at("totals.merges[0].tasks[0].projection"), above=False),
    Edge("inflated", "inflated", at("totals.merges[0].tasks[0].projection")),
    Edge("try_robustmerge", "steep", steep),
    Edge("keeps_more", "keeps_more", destroys),
    Edge("keeps_directions", "keeps_directions", turns),
]


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: f"{edge.rule}-{edge.threshold}")
def test_a_rule_speaks_on_one_side_of_its_threshold_and_not_on_the_other(edge: Edge):
    value = THRESHOLDS[edge.threshold].value
    inside, outside = (value + edge.gap, value - edge.gap) if edge.above else (value - edge.gap, value + edge.gap)
    assert edge.rule in rules(edge.put(inside))
    assert edge.rule not in rules(edge.put(outside))


def test_every_rule_and_every_threshold_stands_in_the_table():
    """`balanced` and `rank_loss` are the other sides of norm_ratio and kept."""
    spoken = {"untrained", "opposed", "opposed_site", "signs", "collide", "turned", "invented", "shrunk", "inflated"}
    spoken |= {"norm_ratio", "rank_enough", "destroyed", "related", "same"}
    assert {edge.rule for edge in EDGES} == spoken | {reason.__name__ for reason in REASONS}
    assert {edge.threshold for edge in EDGES} == set(THRESHOLDS)
    assert len(RULES) == len(spoken) - 1, "one rule tells related and same updates apart"


def test_the_other_sides_of_the_rules_that_always_speak():
    assert "rank_loss" in rules(changed(plain(), "totals.merges[0].kept", 0.899))
    assert "balanced" in rules(norms(2.999))
    assert "balanced" not in rules(norms(3.0))


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: f"{edge.rule}-{edge.threshold}")
def test_a_sentence_carries_its_number_and_threshold_and_both_stand_in_the_report(edge: Edge):
    value = THRESHOLDS[edge.threshold].value
    report = edge.put(value + edge.gap if edge.above else value - edge.gap)
    (found,) = (each for each in judge(report) if each.rule == edge.rule)
    there = get(report, found.path)
    if isinstance(there, int | float):
        assert there == found.figure
    limit = bound(found.threshold)
    assert any(shown in found.sentence for shown in (f"{limit:g}", f"{limit:.0%}")) or found.rule == "untrained"
    size = abs(found.figure)
    shown = {f"{size:.{digits}g}" for digits in (1, 2, 3)} | {f"{size:.1%}", f"{size:.2%}", f"{size:.0%}"}
    assert any(number in found.sentence for number in shown), found.sentence
    assert found.threshold in THRESHOLDS
    assert all(report.adapters[index].label in found.sentence for index in found.adapters)


def test_a_method_that_the_report_has_figures_of_is_not_recommended_blindly():
    def recommended(*methods: str) -> str:
        report = changed(plain(methods=methods), "totals.pairs[0].cosine", -0.2)
        return next((each.sentence for each in judge(report) if each.rule == "try_election"), "")

    assert "ties, della or pcb" in recommended("linear")
    assert "della or pcb" in recommended("linear", "ties")
    assert "pcb" not in recommended("linear", "pcb")
    assert recommended("linear", "ties", "della", "pcb") == ""


def test_of_many_findings_of_one_rule_the_worst_are_told_and_the_rest_counted():
    report = plain(adapters=5)
    for index in range(len(report.totals.pairs)):
        report = changed(report, f"totals.pairs[{index}].cosine", -0.2 - 0.01 * index)
    found = [each for each in judge(report) if each.rule == "opposed"]
    assert len(found) == MOST
    assert found[0].figure == pytest.approx(-0.29)
    assert found[-1].sentence.endswith("The same holds for 6 more.")


def test_the_most_urgent_comes_first():
    report = changed(changed(plain(), "totals.pairs[0].cosine", -0.5), "totals.merges[0].invented", 0.9)
    levels = [found.level for found in judge(report)]
    assert levels == sorted(levels, key=["problem", "warning", "advice", "good"].index)
    assert levels[0] == "problem"


def test_a_pair_that_opposes_as_a_whole_is_not_named_for_a_site_too():
    report = changed(changed(plain(), "totals.pairs[0].cosine", -0.5), "sites[1].pairs[0].cosine", -0.9)
    assert "opposed_site" not in rules(report)


def test_the_rank_that_would_be_enough_is_named():
    report = changed(changed(plain(), "totals.merges[0].kept", 0.7), "totals.merges[0].energy", (0.7, 0.85, 0.93, 1.0))
    (found,) = (each for each in judge(report) if each.rule == "rank_loss")
    assert "loses 30.0%" in found.sentence
    assert "rank 3 would keep 93.0%" in found.sentence


# --- real adapters ----------------------------------------------------------------------------------------------------

ZMOUSA = "zmousa__llm-lab__asafaya--bert-mini-arabic-lora-text-classification--checkpoint-"
GEMMA = "pakkio__gemma3-270M-finetuning-ner__outputs--gemma3-"


def real(place: Path, folder: Path, names: list[str], method: str = "linear", compare: str = "", **keys: Any) -> Analysis:
    recipe = write_recipe(place, [folder / "adapters" / name for name in names], method, extras="drop", missing="zero", **keys)
    return analyze(load_recipe(recipe), parse_candidates(compare) if compare else [])


def test_checkpoints_of_one_run_point_the_same_way_more_the_nearer_they_are(tmp_path: Path, real_inputs: Path):
    found = real(tmp_path, real_inputs, [f"{ZMOUSA}{step}" for step in (11750, 47000, 82250, 117500)])
    said = {one.rule for one in found.verdict}
    assert {"related", "try_average", "balanced", "rank_enough"} <= said
    assert not said & {"opposed", "collide", "norm_ratio", "try_sum", "destroyed"}
    cosine = {(pair.first, pair.second): pair.cosine or 0.0 for pair in found.totals.pairs}
    assert cosine[2, 3] > cosine[1, 2] > cosine[0, 1] > cosine[0, 3] > 0.3
    assert all((pair.sign_conflict or 0) < 0.4 for pair in found.totals.pairs)


def test_adapters_of_different_tasks_do_not_touch_and_the_small_one_drowns(tmp_path: Path, real_inputs: Path):
    names = [
        "Tashu014__lora-imdb-distilbert__root",
        "arshiaanjum__faq-classifier-distilbert-lora__best_model",
        "artiguptagupta68-code__media-bias-detection__root__at-3e3bf19",
    ]
    found = real(tmp_path, real_inputs, names)
    said = {one.rule: one for one in found.verdict}
    assert {"try_sum", "norm_ratio", "try_balance", "try_robustmerge"} <= set(said)
    assert not set(said) & {"opposed", "related", "same", "collide", "rank_loss"}
    assert said["norm_ratio"].adapters == (0, 2)
    assert said["norm_ratio"].figure == pytest.approx(4.76, abs=0.01)


def test_adapters_of_one_kind_of_task_trained_apart_collide_in_their_outputs(tmp_path: Path, real_inputs: Path):
    names = ["270m-gemma3_270m_balanced", "270m-quality-expanded", "entity-extraction-augmented-20ep-places", "robust-training"]
    found = real(tmp_path, real_inputs, [GEMMA + name for name in names], compare="tsv_m")
    said = {one.rule for one in found.verdict}
    assert {"collide", "norm_ratio", "keeps_directions"} <= said
    assert "try_sum" not in said
    assert all(pair.left and pair.right and pair.left.overlap > 3 * pair.right.overlap for pair in found.totals.pairs)


def test_a_rank_that_is_too_small_for_real_adapters_is_named(tmp_path: Path, real_inputs: Path):
    names = [f"parikshit-06__domain-skeleton-gpt2__adapters--{name}" for name in ("legal", "medical")]
    small = real(tmp_path, real_inputs, names, output={"rank": 1})
    (found,) = (each for each in small.verdict if each.rule == "rank_loss")
    assert found.figure < 0.9
    enough = re.search(r"rank (\d+) would keep", found.sentence)
    assert enough is not None
    large = real(tmp_path, real_inputs, names, output={"rank": int(enough[1])})
    assert "rank_enough" in {each.rule for each in large.verdict}
    assert "related" in {each.rule for each in large.verdict}


def test_real_figures_hold_together(tmp_path: Path, real_inputs: Path):
    found = real(
        tmp_path, real_inputs, [f"{ZMOUSA}{step}" for step in (11750, 117500)], "robustmerge", "linear,ties:space=core"
    )
    for part in (found.totals, *found.sites):
        for merge in part.merges:
            assert 0 <= merge.invented <= 1
            for task in merge.tasks:
                assert task is not None
                assert 0 <= task.destroyed <= 1
                assert min(task.top.left, task.top.right) >= 0
                assert math.isfinite(task.crosstalk)
    assert found.totals.merges[1].invented < 1e-6
    assert found.totals.merges[0].invented > 0.1
