"""Registry of the checkpoint formats, and detection of the format of a folder."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from trainer.crosscoder.crosscoder import Crosscoder
from trainer.errors import CrosscoderError, CrossdiffError
from trainer.interchange import antebe, ckkissane, crosscode, dictionary_learning, saelens, sparsify


@dataclass(frozen=True)
class Format:
    """The checkpoint format of one tool."""

    name: str
    find: Callable[[Path], Path | None] | None
    """Returns the weights file of this format at a path, or None. None for a format that is only written."""
    read: Callable[..., Crosscoder] | None
    write: Callable[..., None]
    read_losses: str = ""
    write_losses: str = ""


def _find_crossdiff(path: Path) -> Path | None:
    folder = path if path.is_dir() else path.parent
    return folder / "crosscoder.safetensors" if (folder / "crosscoder.json").is_file() else None


def _read_crossdiff(path: Path) -> Crosscoder:
    return Crosscoder.load(path if path.is_dir() else path.parent)


def _module_format(module: ModuleType) -> Format:
    """The format implemented by a module of this package."""
    losses = (getattr(module, name, "") for name in ("READ_LOSSES", "WRITE_LOSSES"))
    return Format(module.TOOL, getattr(module, "find", None), getattr(module, "read", None), module.write, *losses)


FORMATS = {
    each.name: each
    for each in (
        Format("crossdiff", _find_crossdiff, _read_crossdiff, Crosscoder.save),
        _module_format(dictionary_learning),
        _module_format(ckkissane),
        _module_format(antebe),
        _module_format(crosscode),
        _module_format(saelens),
        _module_format(sparsify),
    )
}
READABLE = tuple(name for name, each in FORMATS.items() if each.read)
WRITABLE = tuple(FORMATS)


def read(path: Path, format: str | None = None, **options: Any) -> Crosscoder:  # noqa: A002
    """Read another tool's checkpoint, a folder or a weights file; the format is recognised when not given.

    Options are those of the format's own `read`. Raises CrosscoderError when nothing can be read, or not exactly.
    """
    chosen = _named(format) if format else detect(path)
    if chosen.read is None:
        raise CrosscoderError(
            f"{chosen.name} can be written, not read. Formats that can be read: {', '.join(READABLE)}."
        )
    if not path.exists():
        raise CrosscoderError(f"{path} does not exist. Give a checkpoint's folder or its weights file.")
    if path.is_dir() and chosen.find and chosen.find(path) is None:
        raise CrosscoderError(f"{path} holds no {chosen.name} checkpoint, but {_contents(path)}. Leave out the format.")
    _check_options(chosen, chosen.read, options)
    try:
        crosscoder = chosen.read(path, **options)
    except CrossdiffError:
        raise
    # Settings of any type may stand beside the weights.
    except Exception as error:  # noqa: BLE001
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CrosscoderError(f"{path} is no {chosen.name} checkpoint ({reason}). Copy it again.") from None
    _check(crosscoder, path)
    return crosscoder


def _check(crosscoder: Crosscoder, path: Path) -> None:
    """Raise CrosscoderError for a crosscoder without features, or with numbers that no training gives."""
    if not crosscoder.groups or not crosscoder.features or not all(crosscoder.widths.values()):
        raise CrosscoderError(f"{path} has no features or no width: its weights are empty. Copy it again.")
    scales = [normaliser.scale for normaliser in crosscoder.normaliser.values()]
    if not all(0 < scale < math.inf for scale in scales):
        raise CrosscoderError(f"{path}: scales of the activations are {scales}. Give one above 0 for each source.")
    tensors = [*crosscoder.weights.values(), *(normaliser.mean for normaliser in crosscoder.normaliser.values())]
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise CrosscoderError(f"{path} holds NaN or infinity. The training failed; take an earlier checkpoint.")
    # A threshold of infinity belongs to a feature that never fires.
    if any(bool(torch.isnan(threshold).any()) for threshold in crosscoder.threshold.values()):
        raise CrosscoderError(f"{path}: a threshold is not a number. Give one, or take an earlier checkpoint.")
    for group in crosscoder.groups:
        if not 0 < crosscoder.row_k.get(group.name, 1) <= group.features:
            raise CrosscoderError(
                f"{path} cannot keep {crosscoder.row_k[group.name]} of {group.features} features per row. "
                "Weights and settings are of two checkpoints; copy them again."
            )


def write(crosscoder: Crosscoder, path: Path, format: str, **options: Any) -> None:  # noqa: A002
    """Write a crosscoder into a new or empty folder, in another tool's format.

    Options are those of the format's own `write`. Raises CrosscoderError when the format cannot hold the crosscoder,
    or the folder holds something.
    """
    chosen = _named(format)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise CrosscoderError(f"{path} is there already and not empty. Give a new folder, so that nothing is lost.")
    _check_options(chosen, chosen.write, options)
    chosen.write(crosscoder, path, **options)


def detect(path: Path) -> Format:
    """The format of a folder or a weights file. Raises CrosscoderError unless exactly one format matches."""
    if not path.exists():
        raise CrosscoderError(f"{path} does not exist. Give a checkpoint's folder or its weights file.")
    matching = [each for each in FORMATS.values() if each.find and each.find(path) is not None]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise CrosscoderError(f"{path} may be {' or '.join(each.name for each in matching)}. Name the format.")
    for file, name in (("sae_weights.safetensors", "saelens"), ("sae.safetensors", "sparsify")):
        if path.is_dir() and next(path.rglob(file), None):
            raise CrosscoderError(
                f"{path} holds autoencoders of {name}, each of one source; they are no crosscoder. Crossdiff writes "
                f"this format and reads {', '.join(READABLE)}."
            )
    raise CrosscoderError(
        f"{path} holds no checkpoint that Crossdiff recognises, but {_contents(path)}. Name the format: "
        f"{', '.join(READABLE)}."
    )


def _named(name: str) -> Format:
    if name not in FORMATS:
        raise CrosscoderError(f"No format is named {name!r}. Known are {', '.join(FORMATS)}.")
    return FORMATS[name]


def _check_options(chosen: Format, function: Callable[..., Any], options: dict[str, Any]) -> None:
    known = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in options.keys() - set(known):
        raise CrosscoderError(f"{chosen.name} has no option {name!r} here. It has {', '.join(known) or 'none'}.")


def _contents(path: Path) -> str:
    """Names of the entries of a folder, for messages."""
    if path.is_file():
        return "is a file"
    names = sorted(entry.name for entry in path.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
