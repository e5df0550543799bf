"""Checks from a model's files, before loading, whether its weights fit into memory."""

import json
from math import prod
from pathlib import Path

import psutil
import torch

from trainer.errors import SourceError

OVERHEAD = 1.15
"""Bytes of memory per byte of weights, with activations and buffers."""
QUANTIZED_BITS = {"8bit": 8, "4bit": 4}


def check_memory(name: str, folder: Path, device: torch.device, dtype: torch.dtype, quantization: str | None) -> None:
    """Raise SourceError if a model's weights do not fit into the free memory of the device."""
    bits = QUANTIZED_BITS[quantization] if quantization else dtype.itemsize * 8
    needed = parameter_count(folder) * bits / 8 * OVERHEAD
    free = free_bytes(device)
    if needed > free:
        where = "memory" if device.type == "cpu" else f"memory of {device}"
        raise SourceError(
            f"{name} needs about {needed / 2**30:.1f} GiB and only {free / 2**30:.1f} GiB of {where} are free. "
            "Choose a smaller model, `dtype: bfloat16`, `quantization: 4bit` (on CUDA) or another device, "
            "or close other programs."
        )


def parameter_count(folder: Path) -> int:
    """Number of parameters in a model folder, from the headers of its files; 0 if it has no weights."""
    counted = sum(prod(shape) for path in folder.glob("*.safetensors") for shape in tensor_shapes(path).values())
    # .bin files have no readable header; most hold 16 bits per parameter.
    return counted or sum(path.stat().st_size // 2 for path in folder.glob("*.bin"))


def free_bytes(device: torch.device) -> int:
    """Free bytes of a device's memory; of system memory for devices without their own."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    return int(psutil.virtual_memory().available)


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Shapes of the tensors in a safetensors file by name, from its header. Raises SourceError."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, MemoryError, OverflowError):
            raise SourceError(f"{path} is damaged: its header cannot be read. Download the model again.") from None
    return {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}
