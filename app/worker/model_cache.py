"""Keeps models in memory: each is loaded when first needed, and evicted when unused and room is short."""

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
"""Unused models kept in memory; beyond that the least recently used is evicted."""

Load = Callable[[SourceRecipe], "Source"]


class OutOfMemory(SourceError):
    """There is no memory for a model, even after all unused ones were evicted."""


@dataclass
class CacheEntry:
    """One model, loaded or not."""

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
    """Held around each forward pass: hooks are set on the model, so its users take turns."""


def load(recipe: SourceRecipe) -> "Source":
    """Load a source as the trainer does; torch is first imported here."""
    from trainer.models.source import load_source

    return load_source(recipe)


class ModelCache:
    """Models by their recipe and content; sources that differ only in name, hookpoint or layer share one."""

    def __init__(self, *, held: int = MODELS_HELD, load: Load = load) -> None:
        self._held = held
        self._load = load
        self._entries: dict[str, CacheEntry] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        """Models are loaded one after another: the library sets process-wide defaults while it does."""

    def state(self, recipe: SourceRecipe, revision: str | None = None) -> SourceState:
        """Whether the model of a source is loaded."""
        entry = self._entry(recipe, revision)
        seconds = time.monotonic() - entry.began if entry.state == "loading" else entry.took
        return SourceState(source=recipe.name, state=entry.state, reason=entry.reason, seconds=seconds)

    @contextmanager
    def using(self, recipe: SourceRecipe, revision: str | None = None) -> "Iterator[tuple[Source, threading.Lock]]":
        """The loaded model, and the lock to hold around each of its forward passes; it stays while it is used.

        Loads it first when it is absent or failed before. Raises CrossdiffError when it cannot be loaded, or is not
        of this revision any more; None takes whatever is there.
        """
        entry = self._entry(recipe, revision)
        with self._lock:
            entry.users += 1
        try:
            with entry.loading:
                source = entry.source or self._load_into(entry, recipe, revision)
            yield source, entry.turn
        finally:
            with self._lock:
                entry.users -= 1
                entry.used_at = time.monotonic()
            self._evict_unused(self._held)

    def _entry(self, recipe: SourceRecipe, revision: str | None) -> CacheEntry:
        with self._lock:
            return self._entries.setdefault(key(recipe, revision), CacheEntry())

    def _load_into(self, entry: CacheEntry, recipe: SourceRecipe, revision: str | None) -> "Source":
        """Load the model of an entry, whose state shows the progress."""
        entry.state, entry.reason, entry.began = "loading", "", time.monotonic()
        try:
            with self._loading:
                source = self._load_with_room(recipe)
            _require_revision(source, recipe, revision)
            entry.source = source
        except OutOfMemory as error:
            entry.state, entry.reason = "out_of_memory", str(error)
            raise
        except CrossdiffError as error:
            entry.state, entry.reason = "failed", str(error)
            raise
        except Exception as error:
            entry.state, entry.reason = "failed", f"Loading it failed: {type(error).__name__}: {error}"
            raise
        entry.state, entry.took = "ready", time.monotonic() - entry.began
        return entry.source

    def _load_with_room(self, recipe: SourceRecipe) -> "Source":
        try:
            return self._load(recipe)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        self._evict_unused(0)
        try:
            return self._load(recipe)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(
                f"There is not enough memory for {recipe.name} ({recipe.model}). "
                "Stop other programs that use it, or load the model quantized."
            ) from error

    def _evict_unused(self, keep: int) -> None:
        """Evict the least recently used models until `keep` are loaded; those in use stay."""
        with self._lock:
            loaded = [entry for entry in self._entries.values() if entry.source is not None]
            unused = sorted((entry for entry in loaded if not entry.users), key=lambda entry: entry.used_at)
            evicted = unused[: max(len(loaded) - keep, 0)]
            for entry in evicted:
                entry.source, entry.state, entry.took = None, "absent", None
        if evicted:
            gc.collect()


def key(recipe: SourceRecipe, revision: str | None = None) -> str:
    """Equal for sources that run the same model and render chats alike."""
    return json.dumps(
        [recipe.model_dump(mode="json", exclude={"name", "hookpoint", "layer"}), revision], sort_keys=True
    )


def _require_revision(source: "Source", recipe: SourceRecipe, revision: str | None) -> None:
    if revision is not None and source.revision != revision:
        raise SourceError(
            f"{recipe.name}: {recipe.model} has changed since the run read it (it was {revision}, and is "
            f"{source.revision} now), so the run's features are not its own. Put the files back as they were, or run "
            "the recipe again."
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's own, or torch's for the CPU and for GPUs."""
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in str(error)
    )
