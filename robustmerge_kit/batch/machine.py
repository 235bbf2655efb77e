"""What this machine, or the part of it that a container or a job of a cluster was given, has to offer."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that may still be taken: what the system has, or what the control group leaves, whichever is less."""
    found = [bytes_left for bytes_left in (_of_system(), _of_group()) if bytes_left is not None]
    return min(found, default=1 << 30)


def _of_system() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _of_group(root: Path = _CGROUP, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the tightest control group around this process leaves; files it has read count as free. None: no limit."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    path = next((line.partition("::")[2] for line in lines if line.startswith("0::")), None)
    if path is None:
        return None
    found: list[int] = []
    inside = root / path.strip("/")
    for group in (inside, *inside.parents):
        if group != root and root not in group.parents:
            break
        try:
            limit = (group / "memory.max").read_text().strip()
            used = int((group / "memory.current").read_text())
            cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit != "max":
            found.append(int(limit) - used + int(cached.get("inactive_file", 0)) + int(cached.get("active_file", 0)))
    return max(0, min(found)) if found else None
