"""Runs a model over a text that grows token by token, with its cache, or all of it again where it has none."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from app.worker.model_cache import is_out_of_memory
from trainer.errors import SourceError
from trainer.models.source import Source

CACHES = ("past_key_values", "cache_params", "state")
"""Names under which families give their cache and take it back."""
UNUSABLE = (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What families raise that cannot go on from a cache of their own."""

Context = Callable[[int], AbstractContextManager[None]]
"""What surrounds a forward pass, given the position of its first token."""

_carries: "WeakKeyDictionary[PreTrainedModel, bool]" = WeakKeyDictionary()


class GrowingText:
    """A text and what its model remembers of it; texts of one model may grow in turns."""

    def __init__(self, source: Source, tokens: list[int]) -> None:
        self._model = source.model
        self._ids = torch.tensor([tokens], device=source.device)
        self._cached = carries_cache(source)
        self._cache: dict[str, Any] = {}

    def add(self, token: int) -> None:
        """Append one token."""
        self._ids = torch.cat([self._ids, self._ids.new_tensor([[token]])], dim=1)

    def next_logits(self, context: Context) -> Tensor:
        """Logits fp32 [vocabulary] of the token that comes next, on the model's device."""
        inputs = _inputs(self._model, self._ids, self._cache, use_cache=self._cached)
        # The library may choose to read more than the tokens that are new.
        first = self._ids.shape[1] - inputs["input_ids"].shape[1]
        with torch.inference_mode(), context(first):
            output = self._model(**inputs, return_dict=True)
        if self._cached:
            self._cache = _cache_in(output)
        logits: Tensor = output.logits[0, -1].float()
        return logits


def carries_cache(source: Source) -> bool:
    """Whether a model can go on from a cache that it gives; found out by two tokens, once per model.

    Some families have none, some keep it in their modules, where the texts of one model would mix, and of some the
    library cannot read it back. Raises SourceError when the model cannot read text either way.
    """
    model = source.model
    if model not in _carries:
        one, two = (torch.zeros((1, length), dtype=torch.long, device=source.device) for length in (1, 2))
        with torch.inference_mode():
            _carries[model] = _goes_on(model, one, two)
            try:
                # Also makes modules forget what they kept of the two tokens.
                model(**_inputs(model, two, {}, use_cache=False), return_dict=True)
            except UNUSABLE as error:
                if is_out_of_memory(error):
                    raise
                fact = f"{source.name} cannot go on from a text: {type(model).__name__} says {error!r}."
                raise SourceError(f"{fact} Steer a run whose models are decoder-only.") from error
    return _carries[model]


def _goes_on(model: PreTrainedModel, one: Tensor, two: Tensor) -> bool:
    try:
        cache = _cache_in(model(**_inputs(model, one, {}, use_cache=True), return_dict=True))
        if cache:
            model(**_inputs(model, two, cache, use_cache=True), return_dict=True)
    except UNUSABLE as error:
        if is_out_of_memory(error):
            raise
        return False
    return bool(cache)


def _inputs(model: PreTrainedModel, ids: Tensor, cache: dict[str, Any], *, use_cache: bool) -> dict[str, Any]:
    """What the model is called with, as the library's own `generate` does: positions are given, always."""
    takes = inspect.signature(model.forward).parameters
    given: dict[str, Any] = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None], "logits_to_keep": 1}
    given = {name: value for name, value in given.items() if name in takes}
    prepared: dict[str, Any] = model.prepare_inputs_for_generation(
        ids,
        next_sequence_length=1 if cache else None,
        is_first_iteration=not cache,
        use_cache=use_cache,
        **given,
        **cache,
    )
    return prepared


def _cache_in(output: Any) -> dict[str, Any]:
    """The cache in a model's output under the name that the model takes it by; empty when there is none."""
    return {name: output[name] for name in CACHES if name in output}
