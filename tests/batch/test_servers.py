"""The ready files of docs/servers: they parse, and what they call exists; the Slurm script does what it says."""

import configparser
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import click
import pytest

from robustmerge_kit.cli.batch import batch

SERVERS = Path(__file__).parents[2] / "docs" / "servers"
FLAGS = {flag for option in batch.params if isinstance(option, click.Option) for flag in option.opts}
SLURM = SERVERS / "rmkit-batch.slurm"


def flags_in(text: str) -> set[str]:
    """The flags of the `batch` command lines in a text."""
    commands = re.findall(r"batch .*?(?<!\\)$", text.replace("\\\n", " "), re.MULTILINE)
    return {flag for command in commands for flag in re.findall(r"(?<!\S)--[a-z-]+", command)}


@pytest.mark.parametrize("name", ["rmkit-batch.slurm", "rmkit-batch.service"])
def test_the_flags_exist(name: str) -> None:
    found = flags_in((SERVERS / name).read_text())
    assert {"--out", "--grace"} <= found <= FLAGS


def test_the_slurm_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SLURM)], check=True)
    directives = re.findall(r"^#SBATCH (--[a-z-]+)", SLURM.read_text(), re.MULTILINE)
    assert {"--signal", "--requeue", "--mem", "--cpus-per-task"} <= set(directives)
    first_command = SLURM.read_text().index("set -euo")
    assert SLURM.read_text().rindex("#SBATCH --") < first_command, "sbatch reads directives before the first command only"


CODES = {0: 0, 1: 1, 143: 143}


@pytest.mark.parametrize("code", CODES)
def test_the_slurm_script_hands_on_sigterm_and_requeues(code: int, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    heard = tmp_path / "heard"
    body = f"#!/usr/bin/env bash\necho \"$@\" > {heard}\ntrap 'echo TERM >> {heard}; sleep 0.3; exit {code}' TERM\n"
    (tools / "rmkit").write_text(f"{body}touch {tmp_path}/up\nwhile true; do sleep 0.05; done\n")
    (tools / "scontrol").write_text(f'#!/usr/bin/env bash\necho "$@" > {tmp_path}/requeued\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "3"}
    script = subprocess.Popen(["bash", str(SLURM)], env=env, cwd=tmp_path)
    deadline = time.monotonic() + 20
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    assert script.wait(20) == CODES[code]
    command, *signals = heard.read_text().splitlines()
    assert command.startswith("batch recipes --out merged --jobs 3 --grace 100 --state rmkit-batch/17")
    assert signals == ["TERM"]
    assert (tmp_path / "requeued").exists() == (code == 143)


def test_the_systemd_unit_parses() -> None:
    path = SERVERS / "rmkit-batch.service"
    if shutil.which("systemd-analyze"):
        done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
        assert "Unknown" not in done.stderr, done.stderr
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(path.read_text())
    assert set(unit.sections()) == {"Unit", "Service", "Install"}
    service = unit["Service"]
    assert set(service["SuccessExitStatus"].split()) == {"143", "130"}
    grace = float(re.search(r"--grace (\d+)", service["ExecStart"])[1])  # type: ignore[index]
    assert grace < float(service["TimeoutStopSec"])
    assert Path(service["ExecStart"].split()[0]).is_absolute(), "systemd wants absolute paths"


INSTRUCTIONS = {"FROM", "ARG", "COPY", "RUN", "USER", "WORKDIR", "ENV", "ENTRYPOINT", "CMD", "STOPSIGNAL"}


def test_the_container_file_parses() -> None:
    text = re.sub(r"^#.*\n", "", (SERVERS / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    assert lines[0][0] == "FROM"
    assert {word for word, _ in lines} <= INSTRUCTIONS
    said = dict(lines)
    assert json.loads(said["ENTRYPOINT"]) == ["rmkit"], "the exec form, or SIGTERM would go to a shell"
    assert said["USER"] != "root"
    declared = {argument.partition("=")[0] for word, argument in lines if word == "ARG"}
    assert set(re.findall(r"\$\{?([A-Z_]+)", text)) <= declared
    root = SERVERS.parents[1]
    assert (root / "constraints.txt").is_file()
    assert "/src/constraints.txt" in text
    if shutil.which("hadolint"):
        subprocess.run(["hadolint", "--ignore", "DL3006", str(SERVERS / "Dockerfile")], check=True)
