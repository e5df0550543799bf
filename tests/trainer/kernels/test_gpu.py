"""The GPU kernels: interpreted on the CPU, compiled without a launch, and run where there is a GPU.

Triton decides at import whether it interprets kernels, so each mode runs in its own process.
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
def test_interpreted_kernels_equal_their_dense_definitions():
    assert "passed" in output_of_checks("checks_of_gpu.py", TRITON_INTERPRET="1")


@with_triton
def test_every_kernel_can_be_compiled_for_a_gpu():
    assert "passed" in output_of_checks("checks_of_triton_kernels.py")


@with_triton
@pytest.mark.gpu
def test_kernels_on_a_gpu_equal_their_dense_definitions():
    assert "passed" in output_of_checks("checks_of_gpu.py")


def test_without_triton_and_on_the_cpu_the_kernels_are_not_usable(monkeypatch):
    import torch

    assert not gpu.usable(torch.zeros(1))
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "AVAILABLE", False)
    assert not gpu.usable(torch.zeros(1))


def test_a_machine_without_a_compiler_gets_a_warning_and_uses_torch(monkeypatch, caplog):
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

    (warning,) = caplog.messages
    assert "Failed to find C compiler." in warning
    assert "gcc" in warning


@pytest.mark.parametrize(
    ("width", "columns"), [(1, 16), (7, 16), (64, 64), (576, 128), (640, 128), (768, 256), (2304, 512), (4096, 512)]
)
def test_programs_take_as_many_columns_as_possible_with_little_padding(width, columns):
    assert gpu._columns(width) == columns


def output_of_checks(file: str, **environment: str) -> str:
    """Output of pytest on a file of checks, with these environment variables; fails with it when a check fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment
    finished = subprocess.run(
        command, cwd=HERE.parents[1], env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    if finished.returncode:
        pytest.fail(finished.stdout + finished.stderr, pytrace=False)
    return finished.stdout
