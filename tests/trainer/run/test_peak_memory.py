"""Freed memory goes back to the system where a stage asks for it."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys
import psutil
from trainer.run.peak_memory import return_large_blocks
return_large_blocks(at_once=sys.argv[1] == "at once")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
before, blocks = psutil.Process().memory_info().rss, []
for _ in range(20):
    block = libc.malloc(8 << 20)
    libc.memset(block, 1, 8 << 20)
    blocks.append(block)
    libc.malloc(4096)  # a small block that stays
for block in blocks:
    libc.free(block)
print(psutil.Process().memory_info().rss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets how glibc, the C library of Linux, gives memory back")
def test_blocks_of_a_few_mebibytes_are_returned_although_small_ones_between_them_stay():
    def left(how: str) -> int:
        return int(
            subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True, text=True).stdout
        )

    assert left("at once") < 10 << 20 < left("when trimmed")
