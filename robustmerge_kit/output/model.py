"""The files of a folded model: weights cloned from the base or written afresh, and everything around them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch

from ..plan import Fold, OutputFile
from ..shards import ShardClone, ShardWriter, copy_file
from ..sources import FileDigest, digest
from .journal import NAME as JOURNAL
from .journal import Journal
from .tensor_files import write_json

_KEPT_METADATA = ("format",)


class ModelWeights:
    """Writes the weights of one model, or of a part of it, into a staged folder, where an earlier run may have finished some.

    It is the canvas of a fold; `close` ends it. A file whose last job is done is brought to the disk and hashed while others
    are still worked on. The journal says which files were begun properly; others of these names are removed.
    """

    def __init__(self, stage: Path, fold: Fold, journal: Journal) -> None:
        self._stage = stage
        self._fold = fold
        self._journal = journal
        self._file_of = {file.prefix + spec.name: file for file in fold.files for spec in file.specs}
        self._open: dict[str, ShardClone | ShardWriter] = {}
        self._pending: Counter[str] = Counter()
        self._finisher = ThreadPoolExecutor(max_workers=2, thread_name_prefix="rmkit-finish")
        self._finished: list[Future[None]] = []
        self.digests: dict[str, FileDigest] = {}
        for file in fold.files:
            if _begun(file) not in journal.done:
                (stage / file.name).unlink(missing_ok=True)

    def expect(self, jobs: Iterable[Sequence[str]]) -> None:
        """Count the jobs of every file, each given by its tensors; a file without jobs is complete once it is there."""
        for tensors in jobs:
            self._pending.update({self._file_of[name].name for name in tensors})
        for file in self._fold.files:
            if not self._pending[file.name]:
                self._finished.append(self._finisher.submit(self._take_whole, file))

    def prepare(self, tensor: str) -> None:
        """Create the file of a tensor, unless it is there."""
        self._prepare_file(self._file_of[tensor])

    def write(self, tensor: str, start: int, values: torch.Tensor) -> None:
        """Store elements of a tensor from `start` on."""
        file = self._file_of[tensor]
        self._open[file.name].write_flat(tensor.removeprefix(file.prefix), start, values)

    def read(self, tensor: str, start: int, stop: int) -> bytes:
        """What lies where elements of a tensor belong."""
        file = self._file_of[tensor]
        return self._open[file.name].read_flat(tensor.removeprefix(file.prefix), start, stop)

    def finish(self, tensors: Sequence[str]) -> None:
        """A job of these tensors is done."""
        for name in {self._file_of[tensor].name for tensor in tensors}:
            self._pending[name] -= 1
            if not self._pending[name]:
                self._complete(next(file for file in self._fold.files if file.name == name))

    def close(self) -> None:
        """Wait until all files are on the disk and hashed.

        Raises: OutputError when the disk refuses.
        """
        for future in self._finished:
            future.result()
        self._finisher.shutdown()

    def abandon(self) -> None:
        """Close open files after a failure; what is done stays."""
        self._finisher.shutdown(cancel_futures=True)
        for writer in self._open.values():
            writer.abandon()

    def _prepare_file(self, file: OutputFile) -> None:
        if file.name in self._open:
            return
        path = self._stage / file.name
        if path.parent != self._stage:
            path.parent.mkdir(exist_ok=True)
        again = _begun(file) in self._journal.done and path.exists()
        if file.clone is not None:
            self._open[file.name] = ShardClone(path, file.clone.shard, file.rewritten, again)
        else:
            self._open[file.name] = ShardWriter(path, file.specs, self._metadata(file), again)
        if not again:
            self._journal.add(_begun(file), {})

    def _metadata(self, file: OutputFile) -> dict[str, str]:
        for other in self._fold.base.files:
            if other.prefix == file.prefix:
                return {key: value for key, value in other.shard.metadata.items() if key in _KEPT_METADATA}
        return {}

    def _complete(self, file: OutputFile) -> None:
        writer = self._open[file.name]
        for spec in file.specs:
            writer.finish(spec.name)
        self._finished.append(self._finisher.submit(self._to_disk, file.name, writer.close))

    def _take_whole(self, file: OutputFile) -> None:
        self._prepare_file(file)
        self._to_disk(file.name, self._open[file.name].close)

    def _to_disk(self, name: str, close: Callable[[], None]) -> None:
        close()
        path = self._stage / name
        self.digests[name] = digest([path], background=True)[path]


def clear_around(stage: Path, fold: Fold) -> None:
    """Remove what an earlier run wrote beside the weights; these small files are written again."""
    weights = {file.name for file in fold.files}
    for path in sorted(stage.rglob("*"), reverse=True):
        name = path.relative_to(stage).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif name not in weights and not name.startswith(JOURNAL):
            path.unlink()


def write_around(stage: Path, fold: Fold) -> None:
    """Write indexes and configurations beside the weights of a model, and copy the rest of the base.

    Raises: OutputError when the disk refuses.
    """
    _write_indexes(stage, fold)
    changed = {_config_name(prefix): values for prefix, values in fold.configs.items() if values}
    for name in fold.beside:
        target = stage / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in changed:
            original = json.loads((fold.base.folder / name).read_text(encoding="utf-8"))
            write_json(target, {**original, **changed[name]})
        else:
            copy_file(fold.base.folder / name, target)


def _begun(file: OutputFile) -> str:
    """What the journal calls the creation of a file."""
    return f"file {file.name}"


def _write_indexes(stage: Path, fold: Fold) -> None:
    """An index for every component with more than one file, or that had one."""
    indexed = {index.rpartition("/")[0] for index in fold.base.indexes}
    by_folder: dict[str, list[OutputFile]] = {}
    for file in fold.files:
        by_folder.setdefault(file.name.rpartition("/")[0], []).append(file)
    for folder, files in by_folder.items():
        if len(files) == 1 and folder not in indexed:
            continue
        weights: dict[str, str] = {}
        total = 0
        for file in files:
            specs = file.specs if file.clone is None else [ref.spec for ref in file.clone.shard.tensors.values()]
            total += sum(spec.nbytes for spec in specs)
            weights |= {spec.name: file.name.rpartition("/")[2] for spec in specs}
        stem = "diffusion_pytorch_model" if "diffusion_pytorch_model" in files[0].name else "model"
        name = f"{stem}.safetensors.index.json"
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}
        write_json(stage / folder / name, index)


def _config_name(prefix: str) -> str:
    return f"{prefix.removesuffix('.')}/config.json" if prefix else "config.json"
