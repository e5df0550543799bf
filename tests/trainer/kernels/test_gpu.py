"""The kernels for a GPU: interpreted on the CPU, compiled without being run, and run where there is a GPU.

How Triton treats its kernels is decided when it is imported, so each way has a process of its own.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.kernels import gpu

HERE = Path(__file__).parent
with_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton: make setup, on Linux"
)


@with_triton
@pytest.mark.slow
def test_interpreted_kernels_agree_with_their_slow_definitions():
    assert "passed" in checked("checks_of_gpu.py", TRITON_INTERPRET="1")


@with_triton
def test_every_kernel_can_be_compiled_for_a_gpu():
    assert "passed" in checked("checks_of_triton_kernels.py")


@with_triton
@pytest.mark.gpu
def test_kernels_on_a_gpu_agree_with_their_slow_definitions():
    assert "passed" in checked("checks_of_gpu.py")


def test_without_triton_and_on_the_cpu_the_kernels_are_not_usable(monkeypatch):
    import torch

    assert not gpu.usable(torch.zeros(1))
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "AVAILABLE", False)
    assert not gpu.usable(torch.zeros(1))


def test_a_machine_that_cannot_compile_is_told_so_and_goes_on_without(monkeypatch, caplog):
    import torch

    def no_compiler(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "AVAILABLE", True)
    monkeypatch.setattr(gpu, "_launch", no_compiler)
    gpu._works.cache_clear()
    try:
        assert not gpu.usable(torch.zeros(1))
        assert not gpu.usable(torch.zeros(1))
    finally:
        gpu._works.cache_clear()

    (told,) = caplog.messages
    assert "Failed to find C compiler." in told
    assert "gcc" in told


@pytest.mark.parametrize(
    ("width", "columns"), [(1, 16), (7, 16), (64, 64), (576, 128), (640, 128), (768, 256), (2304, 512), (4096, 512)]
)
def test_programs_take_as_many_columns_as_leave_few_beyond_the_width(width, columns):
    assert gpu._columns(width) == columns


def checked(file: str, **environment: str) -> str:
    """What pytest says of a file of checks, with these settings; fails with it when a check does."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    done = subprocess.run(
        command, cwd=HERE.parents[1], env=settings, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
    return done.stdout
