"""Hashes of the inputs, computed while the merge runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from . import __version__
from .apart import HashedApart
from .plan import Inputs, Layout, Plan
from .sources import FileDigest, digest


class Hashing:
    """Hashes of all input files, computed beside the merge: the card names them, the merge itself seldom needs them."""

    def __init__(self, inputs: Inputs, base: bool = True) -> None:
        """base: hash the weights of a local base too, once the adapters are."""
        self._inputs = inputs
        self._paths = sorted({path for adapter in inputs.adapters for path in adapter.files})
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rmkit-hash")
        self._apart = HashedApart()
        self._future: Future[Mapping[Path, FileDigest]] = self._pool.submit(digest, self._paths, True, self._apart.ask)
        local = inputs.base if base and inputs.base is not None and inputs.base.source.revision is None else None
        weights = [file.path for file in local.files] if local is not None else []
        self._base: Future[Mapping[Path, FileDigest]] = self._pool.submit(digest, weights, True, self._apart.ask)

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *exception: object) -> None:
        self._apart.close()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def results(self) -> Mapping[Path, FileDigest]:
        """Digest of every file of the adapters."""
        return self._future.result()

    def base_results(self) -> Mapping[Path, FileDigest]:
        """Digest of every weights file of a local base; a base from the Hub is known by its commit."""
        return self._base.result()

    def merge_identity(self, plan: Plan, device: str, layout: Layout) -> str:
        """What determines every byte of a folded model: recipe, inputs, program, kind of device, layout.

        A base that lies on this machine counts with size, time and inode of its files: reading all of it would take as long as
        folding into it.
        """
        assert self._inputs.base is not None
        digests = self.results()
        known = {
            "rmkit": __version__,
            "recipe": plan.recipe.model_dump(mode="json"),
            "adapters": [[digests[path].sha256 for path in adapter.files] for adapter in plan.adapters],
            "base": [[file.name, *_stamp(file.path)] for file in self._inputs.base.files],
            "device": device.partition(":")[0],
            "layout": [layout.shard_size, layout.tokenizer],
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    def identities(self) -> list[str]:
        """What keys an adapter's random numbers: its repository and commit, or the hash of its files."""
        return [
            f"{adapter.source.repository}@{adapter.source.revision}:{adapter.source.folder.name}"
            if adapter.source.repository and adapter.source.revision
            else self._content(adapter.files)
            for adapter in self._inputs.adapters
        ]

    def _content(self, files: tuple[Path, ...]) -> str:
        digests = self.results()
        return hashlib.sha256("\n".join(sorted(f"{p.name} {digests[p].sha256}" for p in files)).encode()).hexdigest()


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
