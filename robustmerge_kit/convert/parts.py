"""An adapter of any layout, taken apart into the models it adapts, with module paths for names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapters import Adapter, Extra, SiteFactors, read_adapter
from ..errors import PlanError, UsageError
from ..folders import CONFIG
from ..sources import resolve
from .components import guess_component, is_component, split_diffusers, split_kohya
from .names import Names, names_of_base, names_of_list, number, unflatten
from .wish import Wish


@dataclass(frozen=True)
class Part:
    """What an adapter does to one model. Modules go by their paths inside of it.

    component: that model's name in a diffusion pipeline, "" where nothing says it. prefix: its modules' prefix in the kohya
    file they come from. config: PEFT's settings as stored, empty where the layout has none.
    """

    adapter: Adapter
    component: str
    modules: Mapping[str, SiteFactors]
    prefix: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extras: Mapping[str, Extra] = field(default_factory=dict[str, Extra])


def read_adapters(reference: str, place: Path, wish: Wish) -> list[tuple[str, Adapter]]:
    """The adapter; or, for a folder of PEFT adapters called as the components of a pipeline, each of them with its component.

    Raises: InputError.
    """
    source = resolve(reference, place)
    children: list[str] = []
    if source.file is None and not (source.folder / CONFIG).is_file() and wish.adapter_name is None:
        children = sorted(child.name for child in source.folder.iterdir() if (child / CONFIG).is_file())
    if len(children) > 1 and all(map(is_component, children)):
        return [(child, _read(f"{reference}:{child}", place, wish, child)) for child in children]
    return [(wish.component or "", _read(reference, place, wish, Path(reference.partition("@")[0]).name or reference))]


def _read(reference: str, place: Path, wish: Wish, label: str) -> Adapter:
    return read_adapter(
        resolve(reference, place),
        label=label,
        adapter_name=wish.adapter_name,
        alpha=wish.alpha,
        rename=wish.rename,
        # PEFT's own settings name the changed base, and PEFT's own layout carries them.
        allow=("modified_init",) if wish.to in ("peft", "same") else (),
    )


def take_apart(adapters: list[tuple[str, Adapter]], wish: Wish) -> list[Part]:
    """One part for each model that is adapted.

    Raises: InputError, PlanError when module names are needed and nothing gives them.
    """
    parts = [part for component, adapter in adapters for part in _parts_of(adapter, component, wish)]
    if wish.component and len(parts) > 1:
        raise UsageError(
            f"--component {wish.component}: the adapter has {len(parts)} components, {', '.join(p.component for p in parts)}",
            hint="leave the option out",
        )
    return parts


def _parts_of(adapter: Adapter, component: str, wish: Wish) -> list[Part]:
    if adapter.layout == "kohya":
        return _kohya_parts(adapter, component, wish)
    if adapter.layout == "diffusers":
        return _diffusers_parts(adapter, component)
    if adapter.layout == "numbered":
        names = _names(adapter, wish)
        modules = {path: adapter.sites[site] for site, path in number(list(adapter.sites), names).items()}
        return [Part(adapter, component, modules, extras=adapter.extras)]
    config = adapter.config if adapter.layout != "mlx" else {}
    return [Part(adapter, component or guess_component(adapter.sites), adapter.sites, "", config, adapter.extras)]


def _kohya_parts(adapter: Adapter, component: str, wish: Wish) -> list[Part]:
    paths: Mapping[str, str] = {}
    if wish.to != "kohya":
        paths = unflatten(list(adapter.sites), _names(adapter, wish))
    found: dict[str, dict[str, SiteFactors]] = {}
    components: dict[str, str] = {}
    for site, factors in adapter.sites.items():
        its, prefix, flat = split_kohya(site)
        components[prefix] = its
        found.setdefault(prefix, {})[paths.get(site, flat)] = factors
    return [Part(adapter, component or components[prefix], modules, prefix) for prefix, modules in found.items()]


def _diffusers_parts(adapter: Adapter, component: str) -> list[Part]:
    found: dict[str, dict[str, SiteFactors]] = {}
    for site, factors in adapter.sites.items():
        its, path = split_diffusers(site)
        found.setdefault(its, {})[path] = factors
    return [
        Part(adapter, its or component or guess_component(modules), modules, "", adapter.config.get(its, {}))
        for its, modules in found.items()
    ]


def _names(adapter: Adapter, wish: Wish) -> Names:
    numbered = adapter.layout == "numbered"
    if wish.names is not None:
        return names_of_list(wish.names)
    if wish.base is not None and not numbered:
        return names_of_base(wish.base)
    reason = (
        "the file does not name its modules"
        if numbered
        else "underscored names cannot be turned back into module names without the model"
    )
    hint = (
        "give --names FILE, one module name a line in the order of the numbers"
        if numbered
        else "give --base FOLDER, the base model, or --names FILE, one module name a line"
    )
    raise PlanError(f"a {adapter.layout} LoRA cannot be written as {wish.to}: {reason}", where=adapter.label, hint=hint)
