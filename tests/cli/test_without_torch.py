"""What reads headers alone does not load torch, and loads it whole where it does."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_adapters import write_adapters, write_recipe

MAIN = "import sys; sys.argv = ['rmkit', *{arguments!r}]\nfrom robustmerge_kit.cli import main; main()"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)


def rmkit(*arguments: str) -> tuple[subprocess.CompletedProcess[str], bool]:
    """A command's outcome, and whether torch's code ran in it."""
    code = "try:\n" + textwrap.indent(MAIN.format(arguments=arguments), "    ")
    done = python(code + "\nfinally:\n    print('loaded' if 'torch._C' in sys.modules else 'not loaded', file=sys.stderr)")
    assert "Traceback" not in done.stderr, done.stderr
    return done, done.stderr.splitlines()[-1] == "loaded"


@pytest.mark.parametrize("command", [("validate",), ("plan", "--quiet"), ("run", "--quiet")])
def test_mistakes_are_told_without_waiting_for_torch(tmp_path: Path, command: tuple[str, ...]) -> None:
    recipe = write_recipe(tmp_path, write_adapters(tmp_path, 2), parameters={"wieght": 1.0})
    done, loaded = rmkit(*command, str(recipe))
    assert "did you mean weight" in done.stderr
    assert not loaded


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("command", ["validate", "plan"])
def test_headers_are_read_without_torch(tmp_path: Path, suffix: str, command: str) -> None:
    adapters = write_adapters(tmp_path, 2)
    if suffix == "bin":
        for adapter in adapters:
            weights = adapter / "adapter_model.safetensors"
            torch.save(load_file(weights), adapter / "adapter_model.bin")
            weights.unlink()
    done, loaded = rmkit(command, str(write_recipe(tmp_path, adapters, "ties", parameters={"density": 0.5})))
    assert done.returncode == 0
    assert not loaded


def test_a_merge_loads_it(tmp_path: Path) -> None:
    done, loaded = rmkit("run", "--quiet", str(write_recipe(tmp_path, write_adapters(tmp_path, 2))), str(tmp_path / "out"))
    assert done.returncode == 0
    assert loaded


USES = {
    "an attribute": "import torch; torch.zeros(2)",
    "a name imported from it": "from torch import Tensor",
    "a part of it": "import torch.nn.functional as f; f.relu",
    "its parts by name": "from torch.nn import Linear",
    "what it does not have": "import torch\ntry: torch.nothing_of_the_kind\nexcept AttributeError: pass",
    "two threads at once": """
        import torch
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            assert [int(x.sum()) for x in pool.map(lambda n: torch.ones(n), range(8))] == list(range(8))
    """,
}


@pytest.mark.parametrize("use", USES)
def test_a_deferred_package_is_whole_when_used(use: str) -> None:
    deferred = "import sys\nfrom robustmerge_kit.late import defer\ndefer('torch')\nassert 'torch._C' not in sys.modules\n"
    used = "\nimport torch\nprint(type(torch).__name__, float(torch.ones(3).sum()))"
    done = python(deferred + textwrap.dedent(USES[use]) + used)
    assert done.stdout == "module 3.0\n", done.stderr


def test_nothing_is_deferred_that_is_not_there_or_loaded() -> None:
    code = """
        import json, sys
        from robustmerge_kit.late import defer, load
        before = json
        defer('json'), defer('a_package_nobody_has'), load('a_package_nobody_has')
        assert sys.modules['json'] is before and 'a_package_nobody_has' not in sys.modules
    """
    assert python(code).returncode == 0
