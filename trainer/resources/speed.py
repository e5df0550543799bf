"""Measures the arithmetic and memory throughput of this machine."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trainer.device import compute_dtype


@dataclass(frozen=True)
class MachineSpeed:
    """Arithmetic and memory throughput of this machine."""

    product: float
    """Floating-point operations per second in a large matrix product, at the precision of training."""
    copy: float
    """Bytes per second read and written by a copy."""


def measure_speed(device: torch.device) -> MachineSpeed:
    """Times a large product and a copy, each several times, and takes the fastest; lasts about a second.

    On a CPU it measures one thread's CPU time and multiplies by torch's threads, so that the figures hold for an
    otherwise idle machine.
    """
    dtype = compute_dtype(device)
    left, right = (torch.randn(rows, 1024, device=device).to(dtype) for rows in (1024, 4096))
    block = torch.zeros(2**26, dtype=torch.uint8, device=device)

    def product() -> None:
        torch.nn.functional.linear(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def copy() -> None:
        block.clone()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    threads = torch.get_num_threads()
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    try:
        torch.set_num_threads(1 if device.type == "cpu" else threads)
        seconds = [_fastest(action, clock) for action in (product, copy)]
    finally:
        torch.set_num_threads(threads)
    each = threads if device.type == "cpu" else 1
    return MachineSpeed(each * 2 * 1024 * 1024 * 4096 / seconds[0], 2 * block.numel() / seconds[1])


def _fastest(action: Callable[[], None], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of several calls."""
    action()
    seconds = []
    for _ in range(5):
        began = clock()
        action()
        seconds.append(clock() - began)
    return min(seconds)
