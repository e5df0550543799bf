"""Writes copies of a model that differ from it in a known way and hold no concept of their own.

A *rounded* copy has its weights rounded to few bits, as quantised models have. A copy with *fewer merges* has a
tokenizer that splits words into more tokens; its weights are the same.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import SourceError
from trainer.models.files import ModelFiles

BLOCK = 64
"""Weights of a row that are rounded with one scale."""
WEIGHTS = "*.safetensors"


def rounded_copy(files: ModelFiles, folder: Path, *, bits: int) -> Path:
    """Copy a model with every matrix rounded to `bits` bits, symmetrically and in blocks of a row; returns `folder`.

    Raises SourceError for a model without safetensors weights.
    """
    for path in _copy_rest(files.folder, folder):
        changed = {name: _rounded(weight, bits) if weight.dim() == 2 else weight for name, weight in _read(path)}
        save_file(changed, folder / path.name, metadata={"format": "pt"})
    return folder


def copy_with_fewer_merges(files: ModelFiles, folder: Path, *, share: float) -> Path:
    """Copy a model with the first `share` of its tokenizer's merges; returns `folder`.

    Raises SourceError for a tokenizer that has no merges, and for a model without safetensors weights.
    """
    path = files.folder / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    model = tokenizer.get("model", {})
    if not model.get("merges"):
        raise SourceError(f"{files.folder} has no tokenizer.json with merges (BPE), so none can be left out.")
    for weights in _copy_rest(files.folder, folder):
        shutil.copyfile(weights, folder / weights.name)
    model["merges"] = model["merges"][: round(share * len(model["merges"]))]
    model["ignore_merges"] = False  # else a word that is a token would be one without any merge
    (folder / path.name).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return folder


def _copy_rest(origin: Path, folder: Path) -> list[Path]:
    """Copy everything but the weights into a new folder; returns the files of weights. Raises SourceError if none."""
    weights = sorted(origin.glob(WEIGHTS))
    if not weights:
        raise SourceError(f"{origin} has no {WEIGHTS} files. Save the model with transformers' save_pretrained first.")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder, ignore=shutil.ignore_patterns(WEIGHTS, "*.bin", "*.gguf"))
    return weights


def _read(path: Path) -> list[tuple[str, Tensor]]:
    return list(load_file(path).items())


def _rounded(weight: Tensor, bits: int) -> Tensor:
    rows, columns = weight.shape
    padded = torch.nn.functional.pad(weight.float(), (0, -columns % BLOCK)).view(rows, -1, BLOCK)
    scale = padded.abs().amax(dim=2, keepdim=True).clamp_min(1e-30) / (2 ** (bits - 1) - 1)
    rounded: Tensor = ((padded / scale).round_() * scale).view(rows, -1)[:, :columns]
    return rounded.to(weight.dtype).contiguous()
