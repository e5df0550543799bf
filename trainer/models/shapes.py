"""Model shapes: how large a model is, and how much of it a hookpoint needs, read from its files without loading it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from trainer.models.memory import tensor_shapes
from trainer.pypi import archives
from trainer.recipe.fitting import SourceRecipe
from trainer.run.folder import home

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_HEADS = ("lm_head", "embed_out")
_PLAIN_BLOCK = 12
"""Weights of a block in units of width squared where no file says it: attention four, an MLP of four widths eight."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model at a hookpoint, in numbers."""

    width: int
    """Of the residual stream."""
    vocabulary: int
    weights: int
    """All of them."""
    kept: int
    """Those that are left when the model is cut after the hookpoint's layer."""
    products: int
    """Of those, what every token is multiplied with."""
    all_products: int
    """What every token is multiplied with in the whole model, head included."""
    layers: int
    """Blocks up to the hookpoint's."""
    all_layers: int


def shape_of(source: SourceRecipe) -> ModelShape | None:
    """Sizes of a source's model, if it is at hand; guessed from its config where its weights are not."""
    found = config_and_folder(source)
    if found is None:
        return None
    config, folder = found
    config = {**config, **config.get("text_config", {})}
    width, layers = config.get("hidden_size"), config.get("num_hidden_layers", source.layer + 1)
    if not isinstance(width, int) or not isinstance(layers, int):
        return None
    vocabulary = config.get("vocab_size", 0)
    tensors = list(_tensors(folder)) or _guessed(config, width, layers, vocabulary)
    blocks = [(layer, shape) for layer, _, shape in tensors if layer is not None]
    outside = sum(prod(shape) for layer, name, shape in tensors if layer is None and not name.startswith(_HEADS))
    reached = [shape for layer, shape in blocks if layer <= source.layer]
    return ModelShape(
        width=width,
        vocabulary=vocabulary,
        weights=sum(prod(shape) for _, _, shape in tensors),
        kept=outside + sum(map(prod, reached)),
        products=sum(prod(shape) for shape in reached if len(shape) > 1),
        all_products=vocabulary * width + sum(prod(shape) for _, shape in blocks if len(shape) > 1),
        layers=min(source.layer + 1, layers),
        all_layers=layers,
    )


def config_of(source: SourceRecipe) -> dict[str, Any] | None:
    """A model's config.json, if the model is on this machine; nothing is fetched or unpacked."""
    found = config_and_folder(source)
    return None if found is None else found[0]


def config_and_folder(source: SourceRecipe) -> tuple[dict[str, Any], Path] | None:
    """A model's config.json and where it lies, if the model is on this machine."""
    for path in _config_places(source):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config, path.parent
    return None


def _tensors(folder: Path) -> Iterator[tuple[int | None, str, list[int]]]:
    """Layer (None outside the blocks), name and shape of every tensor in the folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        for name, shape in tensor_shapes(path).items():
            layer = _LAYER.search(name)
            yield None if layer is None else int(layer.group(1)), name, shape


def _guessed(
    config: dict[str, Any], width: int, layers: int, vocabulary: int
) -> list[tuple[int | None, str, list[int]]]:
    """Tensors as most models of such a config have them: one matrix for every block, and the embeddings."""
    inner = config.get("intermediate_size")
    block = 4 * width + 3 * inner if isinstance(inner, int) else _PLAIN_BLOCK * width
    return [(None, "embeddings", [vocabulary, width]), *((layer, "block", [block, width]) for layer in range(layers))]


def _config_places(source: SourceRecipe) -> list[Path]:
    is_address = archives.is_address(source.model)
    path = archives.place_of(source.model, "models") if is_address else Path(source.model).expanduser()
    if path.suffix == ".gguf":
        return sorted((home() / "models").glob(f"{path.stem}-*/config.json"))
    if is_address or path.exists():
        return [path / "config.json"]
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(source.model, "config.json", revision=source.revision)
    except HFValidationError:
        return []
    return [Path(cached)] if isinstance(cached, str) else []
