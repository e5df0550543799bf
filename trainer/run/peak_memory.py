"""Memory: the most a stage held at once, as the operating system counts it."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> None:
    """Begin counting anew, where the system allows it (Linux), with as little as possible left from before."""
    release()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def release() -> None:
    """Give back what is no longer used: Python's cycles, and what the C library keeps for later (glibc)."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def peak_gigabytes() -> float:
    """Largest resident memory since the last `forget_peak`, or of the process where that cannot be had, in GB."""
    if _STATUS.is_file():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024) / 1e9
