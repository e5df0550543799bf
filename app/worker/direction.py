"""Reads a feature's decoder direction in one source from a run's crosscoder, in raw activation space."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.errors import CrosscoderError
from trainer.run.folder import RunFolder


@dataclass(frozen=True)
class Direction:
    """A feature's decoder direction in one source, in raw activation space."""

    vector: Tensor
    """fp32 [width]; all zero when the feature does not write here."""
    writes: bool
    """Whether the feature writes to this source."""


def read_direction(folder: RunFolder, feature: int, source: str) -> Direction:
    """Read one row of one decoder; the rest of the weights stay on disk.

    Directions are stored in normalised space, (x - mean) * scale, so dividing by the scale gives the change
    of x itself. Raises CrosscoderError when the crosscoder is missing or damaged, or lacks the feature or source.
    """
    description = _description(folder)
    try:
        return _direction(folder, description, feature, source)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from None


def _direction(folder: RunFolder, description: dict[str, Any], feature: int, source: str) -> Direction:
    sources = {entry["name"]: entry for entry in description["sources"]}
    group = next((g for g in description["groups"] if g["first"] <= feature < g["first"] + g["features"]), None)
    if group is None:
        raise CrosscoderError(f"{folder.run_id} has no feature {feature}. Take one of the run's list.")
    if source not in sources:
        raise CrosscoderError(f"{folder.run_id} has no source {source!r}. Its sources: {', '.join(sources)}.")
    width, scale = int(sources[source]["width"]), float(sources[source]["scale"])
    if source not in group["writes"]:
        return Direction(torch.zeros(width), writes=False)
    name = f"decoder.{source}.{group['name']}"
    vector = _row(folder.weights, name, feature - group["first"]).float() / scale
    if vector.shape != (width,) or not bool(vector.isfinite().all()):
        raise _damaged(folder, f"feature {feature} is no direction of {width:,} numbers")
    return Direction(vector, writes=True)


def _description(folder: RunFolder) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(folder.crosscoder.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CrosscoderError(
            f"{folder.run_id} has no trained crosscoder yet. Wait until its training is done."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, str(error)) from None
    return description


def _damaged(folder: RunFolder, fact: str) -> CrosscoderError:
    return CrosscoderError(f"{folder.crosscoder.name} of {folder.run_id} is damaged ({fact}). Train it again.")


def _row(weights: Path, name: str, index: int) -> Tensor:
    try:
        with safe_open(str(weights), framework="pt") as tensors:
            row: Tensor = tensors.get_slice(name)[index]
    except (OSError, IndexError, SafetensorError) as error:
        raise CrosscoderError(f"{weights.name} is missing or damaged ({error}). Train the run again.") from None
    return row
