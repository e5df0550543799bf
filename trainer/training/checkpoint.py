"""Saves and loads the full state of a training, so that it resumes exactly.

One safetensors file holds weights, optimiser moments and counters; its metadata holds the step. Checkpoints are written
atomically, and the previous one is kept until then.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.run.folder import atomic_write

KEEP = 2
"""Checkpoints kept; more than one in case the newest is unreadable."""


@dataclass(frozen=True)
class Checkpoint:
    """State of a training after `step` steps."""

    step: int
    tensors: Mapping[str, Tensor]
    state: dict[str, Any]
    """State that is not tensors: thresholds, and the fingerprint of recipe and store; saved as JSON."""

    def save(self, folder: Path) -> None:
        """Write the checkpoint atomically, then remove all but the last `KEEP`."""
        metadata = {"step": str(self.step), "state": json.dumps(self.state)}
        with atomic_write(folder / f"step-{self.step:08d}.safetensors") as draft:
            save_file(
                {name: tensor.detach().contiguous().cpu() for name, tensor in self.tensors.items()}, draft, metadata
            )
        for old in sorted(folder.glob("step-*.safetensors"))[:-KEEP]:
            old.unlink()


def latest(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest readable checkpoint with this fingerprint of recipe and data, or None."""
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                state = json.loads(metadata["state"])
                if state["fingerprint"] == fingerprint:
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no dict
                    return Checkpoint(int(metadata["step"]), tensors, state)
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError):
            continue  # damaged: fall back to the one before
    return None
