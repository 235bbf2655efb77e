"""Large packages that a command imports when it first uses them: what reads headers alone does not wait for torch."""

from __future__ import annotations

import sys
import threading
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any


class _Deferred(ModuleType):
    """A package whose code runs, in this very object, when it is first asked for something it does not hold yet.

    The standard library's LazyLoader runs it at the second `import` already, which asks for `__spec__`.
    """

    def __getattr__(self, name: str) -> Any:
        with _lock:
            if type(self) is _Deferred:
                if self in _running:  # the package's own code looks whether it has got that far
                    raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
                self._run()
        return getattr(self, name)

    def _run(self) -> None:
        spec = self.__spec__
        assert spec is not None
        assert spec.loader is not None
        _running.append(self)
        try:
            self.__path__ = spec.submodule_search_locations or []
            spec.loader.exec_module(self)
        finally:
            _running.remove(self)
        object.__setattr__(self, "__class__", ModuleType)


_lock = threading.RLock()
_running: list[_Deferred] = []


def defer(name: str) -> None:
    """From here on `import name` binds a module that loads itself when one of its attributes is first asked for.

    Does nothing where the package is loaded already or not installed.
    """
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _Deferred
    if hasattr(module, "__path__"):
        del module.__path__  # whoever imports a submodule asks for it, and needs the package loaded
    sys.modules[name] = module


def load(name: str) -> None:
    """Load a deferred package before threads start: imports of its parts by two threads could wait for each other."""
    getattr(sys.modules.get(name), "__path__", None)
