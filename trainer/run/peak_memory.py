"""Measures the peak resident memory of the process, as counted by the operating system."""

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

_MMAP_THRESHOLD = -3
"""Number of the setting of `mallopt`: blocks from this size on are mapped by themselves."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Release unused memory and reset the peak, which is possible on Linux only."""
    release_memory()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def release_memory() -> None:
    """Collect Python's reference cycles, and return memory that glibc caches to the system."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def return_large_blocks(at_once: bool) -> None:
    """Let glibc return freed blocks of a few MiB to the system at once, or, for speed, only when it is trimmed.

    By itself it does the latter for blocks up to 32 MiB once such a block was freed; between them lie small ones that
    keep the memory from being returned.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, (4 if at_once else 32) << 20)


def peak_gigabytes() -> float:
    """Peak resident memory in GB since the last `reset_peak`; of the whole process where it cannot be reset."""
    if _STATUS.is_file():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e9
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024) / 1e9
