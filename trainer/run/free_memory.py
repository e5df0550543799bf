"""Memory for this process: what the machine has, and what its control groups (containers) allow."""

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def free_memory() -> int:
    """Bytes that this process can still use, without swapping."""
    return min([int(psutil.virtual_memory().available), *(left for _, left in _groups())])


def total_memory() -> int:
    """Bytes that this process could use with nothing else running, without swapping."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _groups())])


def _groups() -> Iterator[tuple[int, int]]:
    """Limit, and bytes left below it, of every control group, of version 1 or 2, that the process is in."""
    lines = MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, usage, cache = GROUPS, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage, cache = (
                GROUPS / "memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        # In a container the path may be the host's, of which only the root is visible.
        group = root / path.lstrip("/")
        for folder in (group, *(one for one in group.parents if one.is_relative_to(root))):
            allowed, used = _number(folder / limit), _number(folder / usage)
            if allowed is not None and used is not None:
                yield allowed, max(allowed - used + _statistic(folder / "memory.stat", cache), 0)


def _number(path: Path) -> int | None:
    """The number in a file; None if it is missing, or says `max`, which is no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    """A number in a `memory.stat`, 0 if it is missing: files' pages count as used but are given back on demand."""
    try:
        return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{name} "))
    except (OSError, StopIteration):
        return 0
