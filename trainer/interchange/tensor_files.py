"""Reads and writes .pt and .safetensors files without executing code from them.

A .pt file is a pickle, and unpickling can run arbitrary code. Only tensors and plain values are accepted; a file that
needs more, or that is small and would fill the memory, is refused.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import CrosscoderError
from trainer.recipe.yaml_text import read_yaml
from trainer.run.folder import atomic_write

COMPILED = "_orig_mod."
"""Prefix of torch.compile on the names of a module's weights."""

MAX_SETTINGS_BYTES = 10_000_000
"""A larger file holds no settings."""

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
        _require_plain(entry, f"{self.path}: tensor {name!r}")
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
            _refuse_bomb(path)
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
    except CrosscoderError:
        raise
    # A damaged file can break its reader anywhere.
    except Exception as error:  # noqa: BLE001
        reason = (str(error) or type(error).__name__).partition("\n")[0][:200]
        raise CrosscoderError(f"{path} is truncated or no tensor file ({reason}). Copy it again.") from None
    if not isinstance(entries, dict):
        raise CrosscoderError(f"{path} holds a {type(entries).__name__}, expected weights by name. Save a state_dict.")
    named = {str(name).replace(COMPILED, ""): value for name, value in entries.items()}
    if len(named) < len(entries):
        raise CrosscoderError(f"{path} holds some weights twice, with and without {COMPILED!r}. Save it again.")
    return TensorFile(path, named)


def _refuse_bomb(path: Path) -> None:
    """Raise CrosscoderError for an archive whose content is larger than itself; torch compresses nothing."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > path.stat().st_size:
        raise CrosscoderError(
            f"{path} is refused: it is compressed, or its parts overlap, and holds {size / 1e6:,.0f} MB. "
            "Load and save it with torch."
        )


def _require_plain(tensor: Tensor, what: str) -> None:
    """Raise CrosscoderError for a tensor that has no element of its own in memory for every entry, or no real ones."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
    if not plain or tensor.is_quantized or tensor.is_complex():
        raise CrosscoderError(f"{what} is no dense tensor of real numbers. Save the weights as float32.")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CrosscoderError(f"{what} repeats its elements (it was expanded). Save it with .contiguous().")


def write_tensors(path: Path, entries: dict[str, Any]) -> None:
    """Write a .pt file atomically."""
    with atomic_write(path) as draft, draft.open("wb") as file:
        torch.save(entries, file)


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON or YAML object beside the weights; empty when there is no such file.

    Raises CrosscoderError when it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SETTINGS_BYTES + 1)
        if len(content) > MAX_SETTINGS_BYTES:
            raise CrosscoderError(f"{path} is larger than {MAX_SETTINGS_BYTES:,} bytes, so it holds no settings.")
        text = content.decode()
        settings = json.loads(text) if path.suffix == ".json" else read_yaml(text)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CrosscoderError(f"{path} is not readable ({reason}). Copy it again.") from None
    if not isinstance(settings, dict):
        raise CrosscoderError(f"{path} holds no settings: expected names with values. Copy it again.")
    return settings


def _shape_text(axes: Axes) -> str:
    return f"[{', '.join(map(str, axes))}]"
