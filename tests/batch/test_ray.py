"""A batch on a Ray cluster of two nodes on this machine, one of which is killed on the way."""

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from many_recipes import contents, environment, finish, start
from shared_models import leader_and_helper, merged_alone, weights, write_models
from slow_plugin import install
from small_adapters import run, sites, write_adapters, write_recipe

pytest.importorskip("ray", reason="Ray is not installed: pip install 'robustmerge-kit[ray]'")

JOBS = 6
SETTINGS = {
    "RAY_DISABLE_MEMORY_MONITOR": "1",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that is gone is noticed within seconds instead of half a minute."""


class Cluster:
    """Two raylet processes with one core each; all processes are ended by their own ids."""

    def __init__(self, plugin: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets need short paths
        self.plugin = plugin
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        port = self.address.rpartition(":")[2]
        self.add("--head", f"--port={port}", f"--temp-dir={self.folder}", "--include-dashboard=false", "--disable-usage-stats")
        self.until_up(1)
        self.add(f"--address={self.address}")
        self.until_up(2)

    def add(self, *flags: str) -> None:
        common = ["--num-cpus=1", "--num-gpus=0", "--memory=1000000000", "--object-store-memory=80000000", "--block"]
        command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *common, *flags]
        with (self.folder / f"node{len(self.nodes)}.log").open("wb") as log:
            env = environment(PYTHONPATH=self.plugin, **SETTINGS)
            node = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)

    def raylets(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for node in self.nodes:
            try:
                family = psutil.Process(node.pid).children(recursive=True)
                found += [each for each in family if each.name() == "raylet"]
            except psutil.NoSuchProcess:
                continue
        return found

    def until_up(self, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(self.raylets()) < count or self.said().count("Ray runtime started") < count:
            assert all(node.poll() is None for node in self.nodes), self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.2)

    def said(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("node*.log")))

    def close(self) -> None:
        family: list[psutil.Process] = []
        for node in self.nodes:
            try:
                family += [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        for node in self.nodes:
            node.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ray")
    adapters = write_adapters(place, 2, where=sites(2))
    (place / "recipes").mkdir()
    for number in range(JOBS):
        keys = {"merge_method": "slow", "adapters": [f"../{each.name}" for each in adapters], "parameters": {"seconds": 0.3}}
        (place / "recipes" / f"job{number}.yaml").write_text(json.dumps({**keys, "name": f"n{number}"}))
    (place / "recipes" / "bad.yaml").write_text(json.dumps({"merge_method": "slow", "adapters": ["../nowhere"]}))
    write_models(place)
    return place


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[Cluster]:
    (place / "plugin").mkdir()
    cluster = Cluster(install(place / "plugin"))
    yield cluster
    cluster.close()


def batch(place: Path, cluster: Cluster, out: str, *flags: str, recipes: str = "recipes") -> "subprocess.Popen[str]":
    arguments = [recipes, "--out", out, "--engine", "ray", "--address", cluster.address, "--json", "--events", f"{out}.jsonl"]
    return start([*arguments, "--state", f"{out}-state", *flags], place, PYTHONPATH=cluster.plugin)


def begun(place: Path, out: str, number: int, process: "subprocess.Popen[str]", writing: int = 1) -> None:
    """Wait until so many merges were handed out, and so many write at the same time."""
    deadline = time.monotonic() + 120
    log = place / f"{out}.jsonl"
    while (
        not log.exists() or log.read_text().count('"started"') < number or len(list((place / out).glob(".*part-*"))) < writing
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_drains_and_the_same_command_goes_on(place: Path, cluster: Cluster) -> None:
    process = batch(place, cluster, "drained")
    begun(place, "drained", 2, process)
    process.terminate()
    code, out, err = finish(process, 300)
    counts = json.loads(out)["counts"]
    assert (code, counts["failed"], counts["stopped"]) == (143, 1, 0), err
    assert 1 <= counts["done"] < JOBS
    assert len(contents(place / "drained")) == counts["done"]
    assert not list((place / "drained").glob(".*"))


def told(place: Path, out: str, event: str) -> list[dict[str, object]]:
    every = [json.loads(line) for line in (place / f"{out}.jsonl").read_text().splitlines()]
    return [each for each in every if each["event"] == event]


@pytest.mark.parametrize("victim", ["leader", "helper"])
def test_one_merge_on_two_nodes(victim: str, place: Path, cluster: Cluster) -> None:
    target = place / victim / "slow"
    process = batch(place, cluster, victim, "--split-above", "1B", recipes="models")
    deadline = time.monotonic() + 120
    both: list[psutil.Process] = []
    while not both:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        workers = [each for raylet in cluster.raylets() for each in raylet.children(recursive=True)]
        both = leader_and_helper(workers, target)
        time.sleep(0.02)
    both[victim == "helper"].kill()
    (place / "go").touch()
    code, _, err = finish(process, 300)
    assert code == 0, err
    assert weights(target) == merged_alone(place)
    assert len(told(place, victim, "worker_lost")) == 1
    assert len(told(place, victim, "started")) == (2 if victim == "leader" else 1)
    assert told(place, victim, "helping")
    assert json.loads((target / "rmkit.json").read_text())["totals"]["resumed_jobs"] > 0, "what the one that died had done"
    (place / "go").unlink()
    assert not list((place / victim).glob(".*"))


def test_a_node_killed_on_the_way_costs_attempts_and_nothing_else(place: Path, cluster: Cluster) -> None:
    process = batch(place, cluster, "killed")
    begun(place, "killed", 2, process, writing=2)
    assert len(cluster.raylets()) == 2
    raylet = cluster.raylets()[1]
    for each in (
        raylet,
        *raylet.children(recursive=True),
    ):  # as a machine dies: its workers must not end their tasks
        each.kill()
    code, out, err = finish(process, 300)
    summary = json.loads(out)
    jobs = {job["name"]: job for job in summary["jobs"]}
    assert (code, summary["counts"]["done"], jobs["bad"]["status"]) == (1, JOBS, "failed"), (out, err)
    assert jobs["bad"]["attempts"] == 1
    assert "no such folder" in jobs["bad"]["errors"][0]["what"]
    assert told(place, "killed", "worker_lost"), "something ran on the node that died"
    adapters = [place / "adapter0", place / "adapter1"]
    run(write_recipe(place, adapters, "task_arithmetic"), place / "alone")
    weights = (place / "alone" / "adapter_model.safetensors").read_bytes()
    merged = contents(place / "killed")
    assert set(merged) == {f"job{number}" for number in range(JOBS)}
    assert all(files["adapter_model.safetensors"] == weights for files in merged.values())
    assert not list((place / "killed").glob(".*"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--address", "local"], "a batch joins a cluster and starts none"), (["--device", "cuda:1"], "--device cuda:1")],
)
def test_there_is_no_local_mode(flags: list[str], said: str, place: Path) -> None:
    code, _, err = finish(start(["recipes", "--out", "none", "--engine", "ray", *flags], place))
    assert code == 2
    assert said in err
