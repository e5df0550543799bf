"""Fingerprints of what a recipe's wording stands for: weights, tokenizers, adapters and texts on this machine.

A model on the hub is known by the commit that the store records, a hub dataset by its name alone; files are known by
their content. What is not on this machine (any more) has no fingerprint, and is taken as unchanged.
"""

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.corpus.mix import part_names
from trainer.corpus.origins import find_files
from trainer.errors import CorpusError
from trainer.models.files import CONFIG_PATTERNS
from trainer.pypi import archives
from trainer.recipe.fitting import CorpusPart, SourceRecipe
from trainer.recipe.recipe import Recipe
from trainer.run.checksum import known_sha256

Inputs = dict[str, dict[str, Any]]
"""Fingerprints (None for what is not here) of every source's `model` and `adapter`, and of every part of the corpus."""

MODEL_PATTERNS = (*CONFIG_PATTERNS, "*.safetensors", "*.bin", "*.gguf")


def inputs_of(recipe: Recipe) -> Inputs:
    """Fingerprints of what a harvest of this recipe would read now."""
    sources = {
        source.name: {"model": _model(source), "adapter": _folder(source.adapter) if source.adapter else None}
        for source in recipe.sources
    }
    mix = () if recipe.corpus is None else recipe.corpus.mix
    names = () if recipe.corpus is None else part_names(recipe.corpus)
    return {"sources": sources, "corpus": {name: _part(part) for name, part in zip(names, mix, strict=True)}}


def changed_inputs(before: Inputs, now: Inputs, recipe: Recipe) -> list[str]:
    """What has changed between two readings of a recipe's inputs, as clauses."""
    return list(_changes(before, now, recipe))


def _changes(before: Inputs, now: Inputs, recipe: Recipe) -> Iterator[str]:
    for source in recipe.sources:
        for kind, address in (("model", source.model), ("adapter", source.adapter)):
            old = before.get("sources", {}).get(source.name, {}).get(kind)
            if _differ(old, now["sources"][source.name][kind]):
                yield f"the {kind} of {source.name} ({address}) has changed"
    mix = () if recipe.corpus is None else recipe.corpus.mix
    for (name, fingerprint), part in zip(now["corpus"].items(), mix, strict=True):
        if _differ(before.get("corpus", {}).get(name), fingerprint):
            yield f"the text of {name} ({part.path}) has changed"


def _differ(old: str | None, new: str | None) -> bool:
    return old is not None and new is not None and old != new


def _model(source: SourceRecipe) -> str | None:
    if archives.is_address(source.model):
        return _files([archives.local_path(source.model, "models")])
    path = Path(source.model).expanduser()
    return _files([path]) if path.suffix == ".gguf" else _folder(source.model)


def _folder(address: str) -> str | None:
    """Fingerprint of a folder's config, tokenizer and weights; None for an address on the hub."""
    path = Path(address).expanduser()
    if not path.is_dir():
        return None
    wanted = [file for file in path.iterdir() if any(fnmatch.fnmatch(file.name, one) for one in MODEL_PATTERNS)]
    return _files(wanted)


def _part(part: CorpusPart) -> str | None:
    if part.path is None:
        return None
    if archives.is_address(part.path):
        return _files([archives.local_path(part.path, "corpora")])
    try:
        return _files(find_files(part))
    except CorpusError:
        return None


def _files(paths: Iterable[Path]) -> str | None:
    """Fingerprint of some files' names and content, 16 hex digits; None if there are none, or one is missing."""
    digest = hashlib.sha256()
    found = sorted(paths)
    for path in found:
        try:
            digest.update(f"{path.name}\0{known_sha256(path)}\n".encode())
        except OSError:
            return None
    return digest.hexdigest()[:16] if found else None
