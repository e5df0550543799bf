"""Loads a model's weights from its folder: all of them and nothing else, or a refusal."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from trainer.errors import SourceError
from trainer.models.decoder import find_body
from trainer.models.files import ModelFiles
from trainer.models.gguf import silence_libraries
from trainer.models.refusal import LOADING_ERRORS, first_line, refusal, runs_own_code
from trainer.recipe.fitting import SourceRecipe

NO_WEIGHTS = ("attn.bias", "attn.masked_bias", "attention.bias", "attention.masked_bias", "inv_freq", "_cached")
"""Ends of names under which old files store masks and tables of positions."""


def load_config(recipe: SourceRecipe, files: ModelFiles) -> PretrainedConfig:
    """The config of a causal language model. Raises SourceError for other kinds, and for adapters beside weights."""
    if (files.folder / "adapter_config.json").is_file():
        raise SourceError(
            f"{recipe.name}: {recipe.model} holds an adapter_config.json beside a model, so it may have its adapter in "
            "it already. Delete that file if the adapter is merged; else give the base model as `model:` and this "
            "folder as `adapter:`."
        )
    try:
        config = AutoConfig.from_pretrained(files.folder, local_files_only=True, trust_remote_code=False)
    except LOADING_ERRORS as error:
        if runs_own_code(error):
            raise refusal(recipe.name, recipe.model, error) from error
        raise SourceError(
            f"{recipe.name}: {recipe.model} is not a language model that transformers supports ({first_line(error)}). "
            "Choose another model, or install a newer transformers."
        ) from error
    if config.is_encoder_decoder or _auto_class(config) is None:
        raise SourceError(
            f"{recipe.name}: {recipe.model} is a {config.model_type} model, and not one that predicts each next token "
            "from those before it. Choose a decoder-only language model."
        )
    return config


def load_model(
    recipe: SourceRecipe, files: ModelFiles, config: PretrainedConfig, device: torch.device, dtype: torch.dtype
) -> PreTrainedModel:
    """Load a model onto a device. Raises SourceError if it cannot be loaded as its config describes it."""
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "trust_remote_code": False}
    packed = _quantization_method(config)
    if packed is not None:
        options |= {"device_map": {"": device}}
    if recipe.quantization is not None:
        if packed is not None:
            raise SourceError(f"{recipe.name}: {recipe.model} is quantized already. Leave `quantization` out.")
        options |= {"quantization_config": _quantization(recipe, device, dtype), "device_map": {"": device}}
    try:
        model, report = _load_from_folder(files, config, options)
    except LOADING_ERRORS as error:
        raise refusal(recipe.name, recipe.model, error, quantized=packed) from error
    _check_report(recipe, report, model)
    return model if "device_map" in options else model.to(device)


def _auto_class(config: PretrainedConfig) -> Any:
    """The class that loads models with such a config; None if they are no language models."""
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    # Their text is read without an image.
    return AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else None


def _load_from_folder(
    files: ModelFiles, config: PretrainedConfig, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the model and what did not fit, with torch's SDPA attention where the family supports it."""
    auto_class = _auto_class(config)
    # Sizes that differ are reported, where otherwise an error says only that there are some.
    options = {**options, "config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    with silence_libraries():
        try:
            model, report = auto_class.from_pretrained(files.folder, attn_implementation="sdpa", **options)
        except ValueError as error:
            if "scaled_dot_product" not in str(error):
                raise
            model, report = auto_class.from_pretrained(files.folder, attn_implementation="eager", **options)
    return model, report


def _check_report(recipe: SourceRecipe, report: dict[str, Any], model: PreTrainedModel) -> None:
    """Raise SourceError unless files and config describe the same weights.

    Weights that are missing would be random numbers. Weights that are left over change nothing outside the decoder's
    blocks (a vision tower, a head for training); in a block they say that the config is that of another model.
    """
    if mismatched := sorted(report["mismatched_keys"]):
        weight, found, expected = mismatched[0]
        raise SourceError(
            f"{recipe.name}: {weight} of {recipe.model} is {list(found)} in its files and {list(expected)} by its "
            "config.json, so the two do not belong together. Get both from one place."
        )
    if missing := sorted(report["missing_keys"]):
        kind = type(model).__name__
        saved = (model.config.architectures or [kind])[0]
        remedy = (
            "Download it again, or save it again with all its weights."
            if saved == kind
            else f"It was saved as {saved}; give a model that was saved as {kind}."
        )
        raise SourceError(f"{recipe.name}: the files of {recipe.model} lack {missing[0]}. {remedy}")
    if left_over := sorted(_left_over_in_blocks(recipe.name, report["unexpected_keys"], model)):
        raise SourceError(
            f"{recipe.name}: {recipe.model} holds {left_over[0]}, for which its config.json has no place. Give the "
            "config.json that belongs to these weights."
        )


def _left_over_in_blocks(name: str, keys: Iterable[str], model: PreTrainedModel) -> Iterator[str]:
    """Those of the keys without a place that lie in a decoder block, or make up one more block of the same kind."""
    layers = int(model.config.get_text_config().num_hidden_layers)
    _, blocks = find_body(name, model, layers)
    path = next(path for path, module in model.named_modules() if module is blocks)
    # Files of a model without its head leave out the first part of the path.
    pattern = re.compile(rf"(?:{re.escape(path)}|{re.escape(path.partition('.')[2] or path)})\.(\d+)\.(.*)")
    known = {weight for block in blocks for weight in block.state_dict()}
    found: defaultdict[int, list[tuple[str, str]]] = defaultdict(list)
    for key in keys:
        if (match := pattern.fullmatch(key)) and not key.endswith(NO_WEIGHTS):
            found[int(match.group(1))].append((key, match.group(2)))
    for layer, weights in found.items():
        # Families that predict several tokens have a block of another kind after the last.
        if layer < layers or all(weight in known for _, weight in weights):
            yield from (key for key, _ in weights)


def _quantization_method(config: PretrainedConfig) -> str | None:
    """How a model folder is quantized, if it is."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    return str(settings.get("quant_method", "an unnamed method") if isinstance(settings, dict) else settings)


def _quantization(recipe: SourceRecipe, device: torch.device, dtype: torch.dtype) -> BitsAndBytesConfig:
    """Settings for bitsandbytes, which quantizes while loading. Raises SourceError where it is not available."""
    if device.type != "cuda":
        raise SourceError(f"{recipe.name}: `quantization` needs a CUDA GPU. Leave it out, or run on one.")
    if find_spec("bitsandbytes") is None:
        raise SourceError(f"{recipe.name}: `quantization` needs bitsandbytes. Run `pip install bitsandbytes`.")
    if recipe.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
