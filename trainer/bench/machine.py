"""Machine: what a bench ran on, and how busy other programs kept it meanwhile."""

import os
import platform
from pathlib import Path

import psutil

QUIET = 0.08
"""Share of the cores that other programs may take before figures are called disturbed."""


class Machine:
    """Counts processor time from the moment it is made."""

    def __init__(self) -> None:
        self._total, self._busy = _all_programs()
        self._own = _own()

    def others(self) -> float:
        """Share of all cores that other programs took since, 0 to 1; children count as own once they have ended."""
        total, busy = _all_programs()
        own = _own() - self._own
        return min(max((busy - self._busy - own) / max(total - self._total, 1e-9), 0.0), 1.0)

    def note(self) -> str:
        """One sentence for below a table."""
        others = self.others()
        verdict = "" if others <= QUIET else ": measure again on a quiet machine"
        return f"{os.cpu_count()} cores ({_processor()}). Other programs took {others:.0%} of them meanwhile{verdict}."


def _all_programs() -> tuple[float, float]:
    """Seconds of all cores since the start, and those that were not idle."""
    times = psutil.cpu_times()._asdict()
    # Linux counts a guest's time in `user` too.
    total = sum(seconds for name, seconds in times.items() if not name.startswith("guest"))
    return total, total - times["idle"] - times.get("iowait", 0.0)


def _own() -> float:
    times = psutil.Process().cpu_times()
    return float(sum((times.user, times.system, times.children_user, times.children_system)))


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
