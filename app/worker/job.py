"""Runs one generation inside the worker: loads its models and samples its lanes in turns, token by token."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import torch

from app.inference.messages import Answer, Ended, GenerationRequest, Started, TextUpdate
from app.worker.direction import Direction, read_direction
from app.worker.harvested import harvested_revisions
from app.worker.model_cache import ModelCache, is_out_of_memory, key
from app.worker.sampling import Sampling, Transcript, end_tokens, generate, prompt_tokens, steering_of
from trainer.errors import CrossdiffError, SourceError
from trainer.models.hookpoint import locate
from trainer.models.source import Source
from trainer.recipe.fitting import SourceRecipe
from trainer.recipe.recipe import load_recipe
from trainer.run.folder import RunFolder

log = logging.getLogger("crossdiff.worker")

Emit = Callable[[Answer], None]


@dataclass
class SampledSequence:
    """A text being sampled; several lanes share one when steering changes nothing."""

    lanes: list[int]
    steps: Iterator[int]
    transcript: Transcript
    ends: frozenset[int]
    began: float = field(default_factory=time.monotonic)
    tokens: int = 0
    last: int = -1


class Job:
    """Runs in threads of its own, reports through `emit`, and ends within one token of being cancelled."""

    def __init__(
        self, request: GenerationRequest, folder: RunFolder, models: ModelCache, emit: Emit, cancelled: threading.Event
    ) -> None:
        self.request = request
        self._cancelled = cancelled
        self._folder = folder
        self._models = models
        self._emit = emit
        self._open = set(range(len(request.lanes)))
        self._revisions = harvested_revisions(folder)

    def run(self) -> None:
        """Sample all lanes to their ends; every lane gets its `Ended`, whatever happens."""
        try:
            models = self._by_model()
        except CrossdiffError as error:
            self._end_all(range(len(self.request.lanes)), "failed", str(error))
            return
        with ThreadPoolExecutor(len(models)) as threads:
            list(threads.map(lambda lanes: self._sample(lanes, len(models)), models))

    def _by_model(self) -> list[dict[int, SourceRecipe]]:
        """Lanes with the recipe of their source, gathered by the model they need."""
        recipes = {source.name: source for source in load_recipe(self._folder.recipe).sources}
        models: dict[str, dict[int, SourceRecipe]] = {}
        for place, lane in enumerate(self.request.lanes):
            if lane.source not in recipes:
                raise SourceError(_no_model(lane.source, self._folder.run_id, list(recipes)))
            recipe = recipes[lane.source]
            models.setdefault(key(recipe, self._revisions.get(recipe.name)), {})[place] = recipe
        return list(models.values())

    def _sample(self, lanes: dict[int, SourceRecipe], models: int) -> None:
        """Sample all lanes of one model."""
        try:
            torch.set_num_threads(threads_for(models))
            recipe = next(iter(lanes.values()))
            with self._models.using(recipe, self._revisions.get(recipe.name)) as (source, turn):
                self._take_turns(self._sequences(source, lanes), turn)
        except CrossdiffError as error:
            self._end_all(lanes, "failed", str(error))
        except Exception as error:
            log.exception("generation %s failed", self.request.id)
            reason = f"The worker made a mistake ({type(error).__name__}). Its log has the details."
            if is_out_of_memory(error):
                reason = "Memory ran out while generating. Ask for fewer tokens, or stop other programs."
            self._end_all(lanes, "failed", reason)

    def _sequences(self, source: Source, lanes: dict[int, SourceRecipe]) -> list[SampledSequence]:
        """One sequence per lane; lanes of one source that steering leaves unchanged share one."""
        asked, sequences, plain = self.request, [], dict[str, SampledSequence]()
        prompt = prompt_tokens(source, asked.parameters.prompt, chat=asked.parameters.chat)
        shown = source.tokenizer.decode(prompt, skip_special_tokens=False)
        for place, recipe in lanes.items():
            source = replace(source, name=recipe.name, recipe=recipe)  # sources may share a model
            direction = read_direction(self._folder, asked.feature, recipe.name)
            _require_width(source, direction)
            self._emit(Started(lane=place, prompt=shown, prompt_tokens=len(prompt), writes=direction.writes))
            steps, changed = self._steps(source, recipe, prompt, direction, asked.lanes[place].strength)
            if not changed and recipe.name in plain:
                plain[recipe.name].lanes.append(place)
                continue
            sequences.append(SampledSequence([place], steps, Transcript(source, prompt), end_tokens(source)))
            if not changed:
                plain[recipe.name] = sequences[-1]
        return sequences

    def _steps(
        self, source: Source, recipe: SourceRecipe, prompt: list[int], direction: Direction, strength: float
    ) -> tuple[Iterator[int], bool]:
        """An iterator over the tokens, not started yet, and whether steering changes anything at all."""
        asked = self.request.parameters
        unit = self.request.max_activation
        steering = steering_of(
            direction.vector.to(source.device), strength=strength, max_activation=unit, positions=asked.positions
        )
        sampling = Sampling(asked.max_tokens, asked.temperature, asked.top_p, asked.seed)
        hookpoint = locate(source, recipe.hookpoint, recipe.layer)
        return generate(source, hookpoint, prompt, sampling, steering), steering is not None

    def _take_turns(self, sequences: list[SampledSequence], turn: threading.Lock) -> None:
        """One token of each sequence after another, so that all texts grow side by side."""
        unfinished = list(sequences)
        while unfinished:
            for sequence in tuple(unfinished):
                if self._cancelled.is_set():
                    self._end_all((lane for sequence in unfinished for lane in sequence.lanes), "stopped", "")
                    return
                try:
                    with turn:
                        token = next(sequence.steps, None)
                except SourceError as error:
                    self._end_all(sequence.lanes, "failed", str(error))
                    token = None
                if token is None:
                    self._end_all(sequence.lanes, "done", "end" if sequence.last in sequence.ends else "length")
                    unfinished.remove(sequence)
                else:
                    self._report(sequence, token)

    def _report(self, sequence: SampledSequence, token: int) -> None:
        sequence.tokens, sequence.last = sequence.tokens + 1, token
        text, seconds = sequence.transcript.add(token), time.monotonic() - sequence.began
        for lane in sequence.lanes:
            self._emit(TextUpdate(lane=lane, text=text, tokens=sequence.tokens, seconds=seconds))

    def _end_all(self, lanes: Iterable[int], state: str, reason: str) -> None:
        """End those of the lanes that have not ended yet."""
        for lane in lanes:
            if lane in self._open:
                self._open.discard(lane)
                self._emit(Ended.model_validate({"lane": lane, "state": state, "reason": reason}))


def _require_width(source: Source, direction: Direction) -> None:
    if len(direction.vector) != source.width:
        raise SourceError(
            f"{source.name}: the model is {source.width:,} wide, and the run's features {len(direction.vector):,}. "
            "Run the recipe again."
        )


def threads_for(models: int) -> int:
    """Threads for each of `models` models that sample at once.

    One token is little work: sharing it between all cores gains little, and costs a hundredfold when a training run
    keeps one of them busy. Never more than half of the cores, also for one model, so that numbers do not depend on
    how many models a request needs.
    """
    return max((os.cpu_count() or 1) // max(models, 2), 1)


def _no_model(source: str, run: str, known: list[str]) -> str:
    if not known:
        return f"{run} was trained on stored activations, so there are no models to steer. Name them in a recipe."
    return f"{run} has no source {source!r}. Its sources: {', '.join(known)}."
