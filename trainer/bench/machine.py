"""Describes the machine of a bench and the CPU share that other programs took meanwhile."""

import os
import platform
from pathlib import Path

import psutil

MAX_OTHERS_SHARE = 0.08
"""Share of the cores that other programs may take before the note asks to measure again."""


class Machine:
    """Measures CPU time from its creation on."""

    def __init__(self) -> None:
        self._total, self._busy = _system_cpu_seconds()
        self._own = _own_cpu_seconds()

    def others_share(self) -> float:
        """Share of all cores that other programs took since then, 0 to 1; finished child processes count as ours."""
        total, busy = _system_cpu_seconds()
        own = _own_cpu_seconds() - self._own
        return min(max((busy - self._busy - own) / max(total - self._total, 1e-9), 0.0), 1.0)

    def note(self) -> str:
        """The machine and the load by other programs, as a note below a table."""
        others = self.others_share()
        verdict = "" if others <= MAX_OTHERS_SHARE else ": measure again on a quiet machine"
        cores = f"{os.cpu_count()} cores ({_processor_name()})"
        return f"{cores}. Other programs took {others:.0%} of them meanwhile{verdict}."


def _system_cpu_seconds() -> tuple[float, float]:
    """CPU seconds of all cores since boot: in total, and not idle."""
    times = psutil.cpu_times()._asdict()
    # Linux includes guest time in `user`.
    total = sum(seconds for name, seconds in times.items() if not name.startswith("guest"))
    return total, total - times["idle"] - times.get("iowait", 0.0)


def _own_cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(sum((times.user, times.system, times.children_user, times.children_system)))


def _processor_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
