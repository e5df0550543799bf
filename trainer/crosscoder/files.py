"""Lays a crosscoder's tensors out as they are saved, and reads its two files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.crosscoder.prediction import Prediction
from trainer.errors import CrosscoderError

FORMAT, VERSION = "crossdiff.crosscoder", 1
PREDICTION_KINDS = ("prediction", "prediction_offset")
"""Names in the file of a prediction's weight [A, W] and offset [W], each followed by the target."""


def to_file_layout(weights: dict[str, Tensor], threshold: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as saved to files: encoders transposed to [W, F], a tied decoder copied for each source."""
    tensors = {
        name: (tensor.detach().T if name.startswith("encoder.") else tensor.detach()).cpu().clone().contiguous()
        for name, tensor in weights.items()
    }
    return tensors | {f"threshold.{group}": value.detach().cpu().clone() for group, value in threshold.items()}


def from_file_layout(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of `to_file_layout`."""
    threshold = {name[10:]: tensor for name, tensor in tensors.items() if name.startswith("threshold.")}
    weights = {
        name: tensor.T.contiguous() if name.startswith("encoder.") else tensor
        for name, tensor in tensors.items()
        if not name.startswith("threshold.")
    }
    return weights, threshold


def prediction_tensors(predictions: Mapping[str, Prediction]) -> dict[str, Tensor]:
    """Predictions as saved to files."""
    parts = ((source, (one.weight, one.offset)) for source, one in predictions.items())
    return {
        f"{kind}.{source}": tensor.cpu().contiguous()
        for source, tensors in parts
        for kind, tensor in zip(PREDICTION_KINDS, tensors, strict=True)
    }


def pop_predictions(description: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Prediction]:
    """Take the predictions out of a file's tensors. Raises KeyError or ValueError when they do not fit together."""
    predictions = {
        source: Prediction(tuple(one["given"]), *(tensors.pop(f"{kind}.{source}") for kind in PREDICTION_KINDS))
        for source, one in description.get("predictions", {}).items()
    }
    known = {source["name"] for source in description["sources"]}
    for source in {*predictions, *(name for one in predictions.values() for name in one.given)} - known:
        raise ValueError(f"prediction with an unknown source {source!r}")
    return predictions


def recurrence_tensors(recurrence: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of trainings by group, as saved to files."""
    return {f"recurrence.{group}": count.cpu().contiguous() for group, count in recurrence.items()}


def pop_recurrence(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the numbers of trainings by group out of a file's tensors."""
    names = [name for name in tensors if name.startswith("recurrence.")]
    return {name.removeprefix("recurrence."): tensors.pop(name) for name in names}


def read_files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a saved crosscoder. Raises CrosscoderError when a file is missing or damaged."""
    try:
        description = json.loads((folder / "crosscoder.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / "crosscoder.safetensors")
    except FileNotFoundError as error:
        raise CrosscoderError(
            f"{folder} holds no trained crosscoder: {error.filename} is missing. Train it first."
        ) from None
    except (ValueError, RecursionError, SafetensorError) as error:
        raise CrosscoderError(
            f"{folder}: the crosscoder's files are damaged ({error}). Train or copy it again."
        ) from None
    if (
        not isinstance(description, dict)
        or description.get("format") != FORMAT
        or description.get("version") != VERSION
    ):
        raise CrosscoderError(
            f"{folder}/crosscoder.json is not {FORMAT!r} version {VERSION}. Use a matching Crossdiff."
        )
    return description, tensors
