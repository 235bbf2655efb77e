"""Build hook: compiles robustmerge_kit/native/kernels.c where there is a C compiler; without one rmkit runs on torch alone.

`python hatch_build.py` compiles in place, for a checkout that is used without installing it. CC and CFLAGS are respected;
RMKIT_NATIVE=0 leaves the kernels out, RMKIT_NATIVE=1 makes their absence an error.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE = Path("robustmerge_kit", "native")
# No contraction: sums must not depend on whether the processor has fused multiply-add.
FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno", "-Wno-psabi")


class NativeKernels(BuildHookInterface):
    """Adds the compiled kernels to a wheel, which is then tied to the platform but to no version of Python."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        failure = compile_kernels(Path(self.root))
        if failure is None:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
            build_data["artifacts"].append(f"/{(NATIVE / 'kernels.so').as_posix()}")
        elif os.environ.get("RMKIT_NATIVE") == "1":
            raise RuntimeError(failure)
        else:
            self.app.display_warning(f"without native kernels, merging is slower: {failure}")


def compile_kernels(root: Path) -> str | None:
    """Compile in place, at once or not at all; after a failure there are no kernels. Returns why not, or None."""
    source, target = root / NATIVE / "kernels.c", root / NATIVE / "kernels.so"
    made = target.with_name(f".kernels.{os.getpid()}.so")
    failure = _compile(source, made)
    if failure is None:
        # A process that has the old file mapped keeps it.
        made.replace(target)
    else:
        made.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return failure


def _compile(source: Path, target: Path) -> str | None:
    if os.environ.get("RMKIT_NATIVE") == "0":
        return "RMKIT_NATIVE=0 asks for none"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        return f"no C compiler: {compiler[0]} is not on PATH"
    command = [*compiler, *FLAGS, *shlex.split(os.environ.get("CFLAGS", "")), "-o", str(target), str(source), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    return None if done.returncode == 0 else f"{shlex.join(command)} failed:\n{done.stderr}"


if __name__ == "__main__":
    sys.exit(compile_kernels(Path(__file__).resolve().parent))
