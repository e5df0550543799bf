"""Checkpoint: everything a training needs to go on as if it had never stopped.

One safetensors file holds weights, optimiser moments and counters; its metadata holds the step. A checkpoint is
published whole or not at all, and the one before it is kept until then.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.run.folder import published

KEEP = 2
"""Checkpoints kept; more than one in case the newest cannot be read."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a training after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    state: dict[str, Any]
    """Numbers that are no tensors: thresholds, the fingerprint of the recipe and the store."""

    def save(self, folder: Path) -> None:
        """Write it whole, then remove what is older than the last two."""
        metadata = {"step": str(self.step), "state": json.dumps(self.state)}
        with published(folder / f"step-{self.step:08d}.safetensors") as draft:
            save_file(
                {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}, draft, metadata
            )
        for old in sorted(folder.glob("step-*.safetensors"))[:-KEEP]:
            old.unlink()


def latest(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest readable checkpoint of the same recipe and data, or None."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                state = json.loads(metadata["state"])
                if state["fingerprint"] == fingerprint:
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict
                    return Checkpoint(int(metadata["step"]), tensors, state)
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
            continue  # a damaged file; the one before it is still there
    return None
