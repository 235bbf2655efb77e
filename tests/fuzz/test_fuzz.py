"""Twenty thousand mutated inputs for each reader of strangers' files: nothing but RmkitError comes out, and much goes in."""

import pytest
from fuzz import SEEDS, run_plain, seeds, session
from fuzz_targets import TARGETS, probing

from robustmerge_kit.errors import RmkitError

RUNS = 20_000
SMALL = 40_000
"""Bytes of all seeds of one target."""


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs(name: str) -> None:
    with session(name, traced=RUNS // 200) as state:
        run_plain(state, RUNS)
        print(state.line(0, "plain"))
        assert not state.findings
        assert state.executions == RUNS
        assert state.passed >= RUNS / 5, "too few inputs pass the outer syntax"
        assert state.lines.share >= 0.9, f"lines that never ran: {state.lines.missing()}"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_small_and_half_of_them_are_read_or_refused_by_the_reader(name: str) -> None:
    assert sum(map(len, seeds(name))) < SMALL
    assert len(list((SEEDS / name).iterdir())) >= 20


def test_a_crash_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fuzzer must be able to fail."""
    from robustmerge_kit.adapters import config

    def broken(config: object, where: str, allow: object) -> list[str]:
        raise KeyError("lora_alpha")

    monkeypatch.setattr(config, "check_config", broken)
    with session("adapter-config") as state:
        run_plain(state, 50)
        assert any("KeyError" in finding for finding in state.findings)


def test_no_error_but_ours_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    with probing() as probe, pytest.raises(RmkitError):
        TARGETS["recipe"].read(b"merge_method: [", probe)
