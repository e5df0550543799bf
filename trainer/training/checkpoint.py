"""Saves and loads the full state of a training, so that it resumes exactly.

One safetensors file holds weights, optimiser moments and counters; its metadata holds the step and a checksum of
everything. Checkpoints are written atomically, and the previous one is kept until then.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.run.checksum import sha256_of
from trainer.run.folder import atomic_write

KEEP = 2
"""Checkpoints kept; more than one in case the newest is damaged."""
BESIDE = "beside"
"""Key of the state that holds SHA-256 by name of files that belong to the checkpoint, in the same folder."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a training after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    state: dict[str, Any]
    """State that is not tensors: thresholds, and the fingerprint of recipe and store; saved as JSON."""

    def save(self, folder: Path) -> None:
        """Write the checkpoint atomically, then remove all but the last `KEEP`."""
        tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}
        metadata = {"step": str(self.step), "state": json.dumps(self.state)}
        metadata["sha256"] = _checksum(metadata, tensors)
        with atomic_write(folder / f"step-{self.step:08d}.safetensors") as draft:
            save_file(tensors, draft, metadata)
        for old in sorted(folder.glob("step-*.safetensors"))[:-KEEP]:
            old.unlink()


def latest(folder: Path, fingerprint: str, *, notify: Callable[[str], None] = lambda _: None) -> Checkpoint | None:
    """The newest undamaged checkpoint with this fingerprint of recipe and data, or None.

    `notify` is called with a message for every damaged one, which is passed over.
    """
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            found = _read(path, fingerprint)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            notify(f"train: checkpoint {path.name} is damaged and passed over")
            continue
        if found is not None:
            return found
    return None


def _read(path: Path, fingerprint: str) -> Checkpoint | None:
    """A checkpoint, or None if it has another fingerprint. Raises ValueError and others if it is damaged."""
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        state = json.loads(metadata["state"])
        if state["fingerprint"] != fingerprint:
            return None
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict
    if metadata.pop("sha256") != _checksum(metadata, tensors):
        raise ValueError(f"{path}: checksum differs")
    for name, checksum in state.get(BESIDE, {}).items():
        if sha256_of(path.with_name(name)) != checksum:
            raise ValueError(f"{path}: checksum of {name} differs")
    return Checkpoint(int(metadata["step"]), tensors, state)


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the metadata and of the names, shapes and bytes of contiguous tensors, in hex."""
    checksum = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        checksum.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        checksum.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()
