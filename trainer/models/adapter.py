"""Merges a PEFT adapter into a model: all of it, or a refusal."""

import pickle
import warnings
from collections.abc import Iterator
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from trainer.errors import SourceError
from trainer.models.files import ModelFiles
from trainer.models.memory import tensor_shapes
from trainer.models.refusal import LOADING_ERRORS, first_line
from trainer.recipe.fitting import SourceRecipe

PREFIX = "base_model.model."
"""Before a weight's name in an adapter's file."""


def merge_adapter(recipe: SourceRecipe, model: PreTrainedModel, adapter: ModelFiles) -> PreTrainedModel:
    """The model with a PEFT adapter merged into its weights.

    PEFT only warns of an adapter that fits in part, so its keys are compared here. Raises SourceError if the adapter
    cannot be merged, adapts a weight that is used twice, or does not fit the model completely.
    """
    from peft import PeftConfig, PeftModel  # slow import that few recipes need

    whose = f"{recipe.name}: the adapter {recipe.adapter}"
    try:
        # Of all that PEFT warns of, what changes the model is checked below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(adapter.folder))
            if config.is_prompt_learning or config.is_adaption_prompt:
                raise _unmergeable(whose, config)
            _check_vocabulary(whose, model, adapter)
            tied = _tied_weight(model)
            adapted = PeftModel.from_pretrained(model, str(adapter.folder))
            _check_tied_weight(whose, adapted, tied)
            # Loaded again for PEFT's own list of what did not fit.
            report = adapted.load_adapter(str(adapter.folder), "default")
            if problem := _misfit(report):
                raise SourceError(f"{whose} does not fit {recipe.model}: {problem}. {REMEDY}")
            merged: PreTrainedModel = _merged(whose, adapted, config)
    except (SafetensorError, EOFError, pickle.UnpicklingError) as error:
        raise SourceError(f"{whose} is damaged: {first_line(error)}. Get it again, as safetensors.") from error
    except LOADING_ERRORS as error:
        raise SourceError(f"{whose} does not fit {recipe.model}: {first_line(error)}. {REMEDY}") from error
    return merged


REMEDY = "Give the adapter that was trained on this model, as its training saved it."


def _merged(whose: str, adapted: Any, config: Any) -> Any:
    try:
        return adapted.merge_and_unload()
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise _unmergeable(whose, config) from error


def _unmergeable(whose: str, config: Any) -> SourceError:
    kind = getattr(config.peft_type, "value", config.peft_type)
    return SourceError(
        f"{whose} is of the kind {kind}, which cannot be merged into a model's weights. Use an adapter of a kind that "
        "can, such as LoRA, or give a model folder with everything in it."
    )


def _misfit(report: Any) -> str | None:
    """What PEFT found missing or left over; None if the adapter fits."""
    missing, left_over = sorted(report.missing_keys), sorted(report.unexpected_keys)
    # Shared vectors are stored once and listed for every layer.
    missing = [key for key in missing if "vblora_vector_bank" not in key]
    if left_over:
        return f"the model has no place for {len(left_over)} of its weights, such as {left_over[0]}"
    return f"it lacks {len(missing)} weights, such as {missing[0]}" if missing else None


def _check_vocabulary(whose: str, model: PreTrainedModel, adapter: ModelFiles) -> None:
    """Raise SourceError if the adapter stores embeddings of another vocabulary: tokens were added before tuning."""
    rows = model.get_input_embeddings().weight.shape[0]
    for path in sorted(adapter.folder.glob("*.safetensors")):
        for name, shape in tensor_shapes(path).items():
            if _is_embedding(model, name) and shape[0] != rows:
                raise SourceError(
                    f"{whose} holds {name} with {shape[0]:,} tokens and the model has {rows:,}: tokens were added "
                    "before it was trained. Give a model folder with its embeddings extended, or with the adapter "
                    "merged."
                )


def _is_embedding(model: PreTrainedModel, name: str) -> bool:
    try:
        weight = model.get_parameter(name.removeprefix(PREFIX))
    except AttributeError:
        return False
    return any(weight is known for known in _embeddings(model))


def _embeddings(model: PreTrainedModel) -> Iterator[Tensor]:
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            yield module.weight


def _tied_weight(model: PreTrainedModel) -> Tensor | None:
    """The weight that is both embedding and unembedding, if there is one."""
    weights = list(_embeddings(model))
    return weights[0] if len(weights) == 2 and weights[0] is weights[1] else None


def _check_tied_weight(whose: str, adapted: Any, tied: Tensor | None) -> None:
    """Raise SourceError if a tied weight is adapted: merging would change both ends of the model, training only one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    if tied is None:
        return
    for name, module in adapted.named_modules():
        if isinstance(module, BaseTunerLayer) and getattr(module.get_base_layer(), "weight", None) is tied:
            raise SourceError(
                f"{whose} adapts {name.removeprefix(PREFIX)}, whose weight is also used at the other end of the model, "
                "so it cannot be merged. Give a model folder whose embeddings are untied (tie_word_embeddings: false) "
                "with the adapter merged."
            )
