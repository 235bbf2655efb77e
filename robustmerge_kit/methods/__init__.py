"""Every merge method by name: the literal tuple BUILTIN, then what other packages offer by entry point."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points, version

from .. import __version__
from ..errors import PluginError, RecipeError
from ..method import Method
from . import (
    breadcrumbs,
    consensus,
    dare,
    dc_merge,
    della,
    drm,
    emr,
    iso,
    karcher,
    linear,
    lora_lego,
    mergekit_dense,
    model_stock,
    pcb,
    peft_combine,
    robustmerge,
    sce,
    slerp,
    star,
    ties,
    tsv,
    wudi,
)

GROUP = "robustmerge_kit.methods"
"""Entry-point group of plugins: `mymerge = "my_pkg.mymerge:METHOD"`."""

BUILTIN: tuple[Method, ...] = (
    *robustmerge.METHODS,
    *linear.METHODS,
    *slerp.METHODS,
    *karcher.METHODS,
    *model_stock.METHODS,
    *ties.METHODS,
    *dare.METHODS,
    *della.METHODS,
    *breadcrumbs.METHODS,
    *sce.METHODS,
    *pcb.METHODS,
    *emr.METHODS,
    *consensus.METHODS,
    *drm.METHODS,
    *tsv.METHODS,
    *iso.METHODS,
    *wudi.METHODS,
    *dc_merge.METHODS,
    *star.METHODS,
    *lora_lego.METHODS,
    *peft_combine.METHODS,
)
_BY_NAME = {method.name: method for method in BUILTIN}


def names() -> tuple[str, ...]:
    """All method names: built-in ones, mergekit's, plugins; neither mergekit nor a plugin is imported for it."""
    return (*_BY_NAME, *mergekit_dense.NAMES, *sorted(set(_plugins()) - set(_BY_NAME)))


def find(name: str) -> Method:
    """The method of that name; a plugin is imported now.

    Raises: RecipeError for an unknown name, PluginError for a plugin that collides, fails to load or is not a Method.
    """
    plugin = _plugins().get(name)
    if name in _BY_NAME:
        if plugin is not None:
            raise PluginError(f"the plugin {plugin.value} calls itself {name!r}, which is a built-in method", hint="rename it")
        return _BY_NAME[name]
    if plugin is None and name in mergekit_dense.NAMES:
        return mergekit_dense.find(name)
    if plugin is None:
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "`rmkit methods` lists all"
        raise RecipeError(f"no merge method is called {name!r}", hint=hint)
    return _load(plugin)


def provider(name: str) -> str:
    """The package that offers a method and its version, as `robustmerge-kit 0.1.0`.

    Raises: what `find` raises.
    """
    find(name)
    if name in _BY_NAME:
        return f"robustmerge-kit {__version__}"
    plugin = _plugins().get(name)
    if plugin is None:
        return f"mergekit {version('mergekit')}"
    return f"{plugin.dist.name} {plugin.dist.version}" if plugin.dist is not None else plugin.value


@cache
def _plugins() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise PluginError(
                f"two plugins offer the method {point.name!r}: {other.value} and {point.value}", hint="uninstall one of them"
            )
    return found


def _load(plugin: EntryPoint) -> Method:
    try:
        method = plugin.load()
    except Exception as error:
        raise PluginError(f"the plugin {plugin.value} cannot be imported: {error}", hint="mend or uninstall it") from error
    if not isinstance(method, Method) or method.name != plugin.name:
        raise PluginError(
            f"the plugin {plugin.value} must be a Method record named {plugin.name!r}, got {method!r:.100}",
            hint="see docs/plugins.md",
        )
    return method
