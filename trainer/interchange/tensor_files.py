"""Reads and writes .pt and .safetensors files without executing code from them.

A .pt file is a pickle, and unpickling can run arbitrary code. Only tensors and plain values are accepted; a file that
needs more is refused.
"""

import json
import pickle
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import CrosscoderError
from trainer.run.folder import atomic_write

COMPILED = "_orig_mod."
"""Prefix of torch.compile on the names of a module's weights."""

Axes = tuple[int | str, ...]
"""An expected shape; a name stands for any size."""


@dataclass(frozen=True)
class TensorFile:
    """Entries of one file by name: tensors, in some formats also plain values."""

    path: Path
    entries: dict[str, Any]

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def tensor(self, name: str, axes: Axes) -> Tensor:
        """A tensor of this shape as fp32, on the CPU.

        Raises CrosscoderError when it is missing, has another shape or holds NaN or infinity.
        """
        tensor = self.raw(name, axes).float()
        if not bool(torch.isfinite(tensor).all()):
            raise CrosscoderError(
                f"{self.path}: tensor {name!r} holds NaN or infinity. The training failed; take an earlier checkpoint."
            )
        return tensor

    def raw(self, name: str, axes: Axes) -> Tensor:
        """A tensor of this shape as it is stored. Raises CrosscoderError when it is missing or has another shape."""
        entry = self.entries.get(name)
        if not isinstance(entry, Tensor):
            what = "lacks tensor" if entry is None else f"holds a {type(entry).__name__} in place of tensor"
            raise CrosscoderError(
                f"{self.path} {what} {name!r} of shape {_shape_text(axes)}. Copy the whole checkpoint again."
            )
        fits = entry.ndim == len(axes) and all(
            isinstance(axis, str) or size == axis for size, axis in zip(entry.shape, axes, strict=True)
        )
        if not fits:
            raise CrosscoderError(
                f"{self.path}: tensor {name!r} has shape {_shape_text(tuple(entry.shape))}, "
                f"expected {_shape_text(axes)}. The file is damaged or of another format; name the format it has."
            )
        return entry

    def require_known(self, known: Collection[str]) -> None:
        """Raise CrosscoderError for entries that are not in `known`."""
        unknown = sorted(self.entries.keys() - set(known))
        if unknown:
            raise CrosscoderError(
                f"{self.path} holds {', '.join(map(repr, unknown[:5]))}, which this format does not have: it is a "
                "variant whose meaning Crossdiff would only guess. Convert it to a known format first."
            )


def read_tensors(path: Path) -> TensorFile:
    """Read a .pt or .safetensors file; names lose the prefix of torch.compile.

    Raises CrosscoderError when the file is missing, damaged, unsafe to open or no dictionary.
    """
    try:
        if path.suffix == ".safetensors":
            entries = load_file(path)
        else:
            with warnings.catch_warnings():
                # torch warns about pickles of other writers; those that cannot be read are refused below.
                warnings.simplefilter("ignore", UserWarning)
                entries = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CrosscoderError(f"{path} does not exist. Give the checkpoint's folder or its weights file.") from None
    except pickle.UnpicklingError:
        raise CrosscoderError(
            f"{path} is refused: opening it could run code, because it holds more than tensors and plain values. "
            "Have its author save the state_dict alone, or convert it to safetensors."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
        raise CrosscoderError(f"{path} is truncated or no tensor file ({reason}). Copy it again.") from None
    if not isinstance(entries, dict):
        raise CrosscoderError(f"{path} holds a {type(entries).__name__}, expected weights by name. Save a state_dict.")
    return TensorFile(path, {str(name).replace(COMPILED, ""): value for name, value in entries.items()})


def write_tensors(path: Path, entries: dict[str, Any]) -> None:
    """Write a .pt file atomically."""
    with atomic_write(path) as draft, draft.open("wb") as file:
        torch.save(entries, file)


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON or YAML object beside the weights; empty when there is no such file.

    Raises CrosscoderError when it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        settings = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise CrosscoderError(f"{path} is not readable ({' '.join(str(error).split())}). Copy it again.") from None
    if not isinstance(settings, dict):
        raise CrosscoderError(f"{path} holds no settings: expected names with values. Copy it again.")
    return settings


def _shape_text(axes: Axes) -> str:
    return f"[{', '.join(map(str, axes))}]"
