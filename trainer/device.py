"""Picks the device to compute on, CPU or GPU, and the precision of its matrix products."""

import torch
from torch import Tensor

from trainer.errors import UsageError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA when available, else MPS, else the CPU; any other name is passed to torch.

    Raises UsageError for a device that is not available.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"Device {name!r} cannot be used here ({str(error).splitlines()[0]}). Use `auto`.") from None
    return device


def measuring_device(name: str) -> torch.device:
    """As `pick_device`, but the CPU in place of MPS: what is measured is summed in float64, which MPS lacks."""
    device = pick_device(name)
    return torch.device("cpu") if device.type == "mps" else device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; copies from the CPU to a CUDA device are asynchronous, from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware has fast products in it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32  # noqa: SLF001
    return torch.float32
