"""The process in which a Python function scores folders: requests on stdin, answers on the descriptor given, one a line each.

    request  {"folder": .., "params": {..}, "log": .., "environment": {..}}
    answer   {"ready": true} once; {"value": 0.5}, or {"error": "ValueError: .."}

Whatever the function prints goes into the log of the trial.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def load_function(spec: str) -> Callable[..., Any]:
    """The function that `module:name` or `file.py:name` stands for; a file finds the modules beside it.

    Raises: whatever its module raises; TypeError for what cannot be called.
    """
    module, _, name = spec.rpartition(":")
    if module.endswith(".py"):
        path = Path(module).absolute()
        sys.path.insert(0, str(path.parent))
        module = path.stem
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{name} is no function")
    return found


def answer(function: Callable[..., Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Call the function once."""
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        value = function(Path(request["folder"]), dict(request["params"]))
        if isinstance(value, bool) or value is None:
            raise TypeError(f"returned {value}, not a number")
        return {"value": float(value)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def main(spec: str, descriptor: int) -> None:
    """Answer requests until there are no more."""
    with os.fdopen(descriptor, "w", encoding="utf-8") as answers:

        def say(what: Mapping[str, Any]) -> None:
            answers.write(json.dumps(what) + "\n")
            answers.flush()

        try:
            function = load_function(spec)
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})
            return
        say({"ready": True})
        for line in sys.stdin:
            say(answer(function, json.loads(line)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
