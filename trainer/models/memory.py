"""Model memory: what a model will need, told from its files before anything is loaded."""

import json
from math import prod
from pathlib import Path

import psutil
import torch

from trainer.errors import SourceError

SLACK = 1.15
"""Memory used per byte of weights: activations and buffers come on top."""
BITS = {"8bit": 8, "4bit": 4}


def check_room(name: str, folder: Path, device: torch.device, dtype: torch.dtype, quantization: str | None) -> None:
    """Raise SourceError when a model's weights cannot fit into the memory that is free now."""
    bits = BITS[quantization] if quantization else dtype.itemsize * 8
    needed = parameters(folder) * bits / 8 * SLACK
    free = free_bytes(device)
    if needed > free:
        where = "memory" if device.type == "cpu" else f"memory of {device}"
        raise SourceError(
            f"{name} needs about {needed / 2**30:.1f} GiB and only {free / 2**30:.1f} GiB of {where} are free. "
            "Choose a smaller model, `dtype: bfloat16`, `quantization: 4bit` (on CUDA) or another device, "
            "or close other programs."
        )


def parameters(folder: Path) -> int:
    """Number of weights in a model folder, from the headers of its files; 0 if it holds none."""
    counted = sum(prod(shape) for path in folder.glob("*.safetensors") for shape in tensor_shapes(path).values())
    # Older files do not say what they hold; most of them are 16 bits a weight.
    return counted or sum(path.stat().st_size // 2 for path in folder.glob("*.bin"))


def free_bytes(device: torch.device) -> int:
    """Bytes free on a device; on a machine with one memory for all, what is free there."""
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
            raise SourceError(f"{path} is damaged: its header cannot be read. Get the model again.") from None
    return {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}
