"""Reads from a model's files how large it is and how much of it a hookpoint needs."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from trainer.errors import SourceError
from trainer.models.memory import tensor_shapes
from trainer.pypi import archives
from trainer.recipe.fitting import SourceRecipe
from trainer.run.folder import home

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
_HEAD_NAMES = ("lm_head", "embed_out")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_DEFAULT_BLOCK_SIZE = 12
"""Parameters of a block over width², if its config gives no MLP size: 4 for attention, 8 for an MLP of 4 × width."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model that is cut at a hookpoint, counted in parameters."""

    width: int
    """Width of the residual stream."""
    vocabulary: int
    parameters: int
    """Parameters of the whole model."""
    kept_parameters: int
    """Parameters that remain when the model is cut after the hookpoint's layer."""
    multiplications: int
    """Matrix parameters up to the hookpoint's block: multiplications per token."""
    all_multiplications: int
    """Matrix parameters of the whole model, with its head: multiplications per token."""
    layers: int
    """Blocks up to the hookpoint's, inclusive."""
    all_layers: int


def shape_of(source: SourceRecipe) -> ModelShape | None:
    """Sizes of a source's model, or None if it is not local; estimated from its config if there are no weights."""
    found = local_config_and_folder(source)
    if found is None:
        return None
    config, folder = found
    config = {**config, **config.get("text_config", {})}
    width, layers = config.get("hidden_size"), config.get("num_hidden_layers", source.layer + 1)
    if not isinstance(width, int) or not isinstance(layers, int):
        return None
    vocabulary = config.get("vocab_size", 0)
    tensors = list(_tensors(folder)) or _estimated_tensors(config, width, layers, vocabulary)
    blocks = [(layer, shape) for layer, _, shape in tensors if layer is not None]
    outside = sum(prod(shape) for layer, name, shape in tensors if layer is None and not name.startswith(_HEAD_NAMES))
    kept_blocks = [shape for layer, shape in blocks if layer <= source.layer]
    return ModelShape(
        width=width,
        vocabulary=vocabulary,
        parameters=sum(prod(shape) for _, _, shape in tensors),
        kept_parameters=outside + sum(map(prod, kept_blocks)),
        multiplications=sum(prod(shape) for shape in kept_blocks if len(shape) > 1),
        all_multiplications=vocabulary * width + sum(prod(shape) for _, shape in blocks if len(shape) > 1),
        layers=min(source.layer + 1, layers),
        all_layers=layers,
    )


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Tokens that a model's positions reach, by its config; None if it says nothing of a limit."""
    config = {**config, **(config.get("text_config") or {})}
    limits = [config[key] for key in _POSITIONS if isinstance(config.get(key), int) and config[key] > 0]
    stretched = (config.get("rope_scaling") or config.get("rope_parameters") or {}).get("factor")
    # Some configs give the length of training, and how far it was stretched beside it.
    return int(limits[0] * max(1.0, stretched if isinstance(stretched, int | float) else 1.0)) if limits else None


def check_context(source: SourceRecipe, config: Mapping[str, Any], context: int) -> None:
    """Raise SourceError if a model has no positions for `context` tokens."""
    limit = context_limit(config)
    if limit is not None and context > limit:
        raise SourceError(
            f"{source.name}: `corpus.context` is {context:,} tokens and {source.model} has positions for {limit:,}. "
            f"Set corpus.context to {limit:,} or less."
        )


def config_of(source: SourceRecipe) -> dict[str, Any] | None:
    """A model's config.json, or None if the model is not local; downloads and unpacks nothing."""
    found = local_config_and_folder(source)
    return None if found is None else found[0]


def local_config_and_folder(source: SourceRecipe) -> tuple[dict[str, Any], Path] | None:
    """A model's config.json and its folder, or None if the model is not local."""
    for path in _config_paths(source):
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


def _estimated_tensors(
    config: dict[str, Any], width: int, layers: int, vocabulary: int
) -> list[tuple[int | None, str, list[int]]]:
    """Tensors estimated from a config: one matrix per block, and the embeddings."""
    inner = config.get("intermediate_size")
    block = 4 * width + 3 * inner if isinstance(inner, int) else _DEFAULT_BLOCK_SIZE * width
    return [(None, "embeddings", [vocabulary, width]), *((layer, "block", [block, width]) for layer in range(layers))]


def _config_paths(source: SourceRecipe) -> list[Path]:
    is_address = archives.is_address(source.model)
    path = archives.local_path(source.model, "models") if is_address else Path(source.model).expanduser()
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
