"""Hashes of the inputs, computed while the merge runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .plan import Inputs
from .sources import FileDigest, digest


class Hashing:
    """Hashes of all input files, computed beside the merge: the card names them, the merge itself seldom needs them."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._paths = sorted({path for adapter in inputs.adapters for path in adapter.files})
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rmkit-hash")
        self._future: Future[Mapping[Path, FileDigest]] = self._pool.submit(digest, self._paths, background=True)

    def __enter__(self) -> Hashing:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def results(self) -> Mapping[Path, FileDigest]:
        """Digest of every input file."""
        return self._future.result()

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
