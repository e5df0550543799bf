"""Shelf: the models that the worker holds, each loaded when it is first needed."""

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from app.inference.messages import SourceState, State
from trainer.errors import CrossdiffError, SourceError
from trainer.recipe.fitting import SourceRecipe

if TYPE_CHECKING:
    from trainer.models.source import Source

MODELS_HELD = 4
"""Models kept in memory when nobody uses them; beyond that the one unused for longest goes."""

Load = Callable[[SourceRecipe], "Source"]


class OutOfMemory(SourceError):
    """There is no room for a model, even after all unused ones were dropped."""


@dataclass
class CacheEntry:
    """One model's place on the shelf."""

    state: State = "absent"
    reason: str = ""
    source: "Source | None" = None
    began: float = 0.0
    took: float | None = None
    """Seconds that loading took."""
    users: int = 0
    used_at: float = 0.0
    loading: threading.Lock = field(default_factory=threading.Lock)
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held around each forward pass: hooks belong to the model, so its users take turns."""


def load(recipe: SourceRecipe) -> "Source":
    """Load a source as the trainer does; torch is first imported here."""
    from trainer.models.source import load_source

    return load_source(recipe)


class ModelCache:
    """Models by what they are; sources that differ only in name, hookpoint or layer share one."""

    def __init__(self, *, held: int = MODELS_HELD, load: Load = load) -> None:
        self._held = held
        self._load = load
        self._places: dict[str, CacheEntry] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        """Models are loaded one after another: the library sets process-wide defaults while it does."""

    def state(self, recipe: SourceRecipe) -> SourceState:
        """How far the model of a source is."""
        place = self._place(recipe)
        seconds = time.monotonic() - place.began if place.state == "loading" else place.took
        return SourceState(source=recipe.name, state=place.state, reason=place.reason, seconds=seconds)

    @contextmanager
    def using(self, recipe: SourceRecipe) -> "Iterator[tuple[Source, threading.Lock]]":
        """The loaded model, and the lock to hold around each of its forward passes; it stays while it is used.

        Loads it first when it is absent or failed before. Raises CrossdiffError when it cannot be loaded.
        """
        place = self._place(recipe)
        with self._lock:
            place.users += 1
        try:
            with place.loading:
                source = place.source or self._fill(place, recipe)
            yield source, place.turn
        finally:
            with self._lock:
                place.users -= 1
                place.used_at = time.monotonic()
            self._drop_unused(self._held)

    def _place(self, recipe: SourceRecipe) -> CacheEntry:
        with self._lock:
            return self._places.setdefault(key(recipe), CacheEntry())

    def _fill(self, place: CacheEntry, recipe: SourceRecipe) -> "Source":
        """Load into a place; its state says how that goes."""
        place.state, place.reason, place.began = "loading", "", time.monotonic()
        try:
            with self._loading:
                place.source = self._load_with_room(recipe)
        except OutOfMemory as error:
            place.state, place.reason = "out_of_memory", str(error)
            raise
        except CrossdiffError as error:
            place.state, place.reason = "failed", str(error)
            raise
        except Exception as error:
            place.state, place.reason = "failed", f"Loading it broke: {type(error).__name__}: {error}"
            raise
        place.state, place.took = "ready", time.monotonic() - place.began
        return place.source

    def _load_with_room(self, recipe: SourceRecipe) -> "Source":
        try:
            return self._load(recipe)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._drop_unused(0)
        try:
            return self._load(recipe)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"There is not enough memory for {recipe.name} ({recipe.model}). "
                "Stop other programs that use it, or load the model quantized."
            ) from error

    def _drop_unused(self, keep: int) -> None:
        """Drop the models unused for longest until `keep` are loaded; those in use stay."""
        with self._lock:
            loaded = [place for place in self._places.values() if place.source is not None]
            unused = sorted((place for place in loaded if not place.users), key=lambda place: place.used_at)
            dropped = unused[: max(len(loaded) - keep, 0)]
            for place in dropped:
                place.source, place.state, place.took = None, "absent", None
        if dropped:
            gc.collect()


def key(recipe: SourceRecipe) -> str:
    """Equal for sources that run the same model."""
    return json.dumps(recipe.model_dump(mode="json", exclude={"name", "hookpoint", "layer", "chat"}), sort_keys=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, or torch's for the CPU and for GPUs."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error)
    )
