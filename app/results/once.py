"""Values that are computed once, however many threads ask for them at the same time."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar, cast

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Once(Generic[Key]):
    """A cache by key, the least recently used dropped beyond `limit`. Safe to share between threads.

    Who asks for what another thread computes just now waits for it. An error goes to all who wait; it is kept for
    `error_rest` seconds, and then computed again.
    """

    def __init__(self, limit: int | None = None, *, error_rest: float = 0.0) -> None:
        self._limit = limit
        self._error_rest = error_rest
        self._lock = threading.Lock()
        self._found: OrderedDict[Key, Future[Any]] = OrderedDict()
        self._failed: dict[Key, float] = {}

    def get(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of a key, by `make()` if nobody has computed it. Raises what `make` raised."""
        with self._lock:
            if key in self._failed and time.monotonic() > self._failed[key]:
                self._drop(key)
            found = self._found.get(key)
            mine = found is None
            if found is None:
                found = self._found[key] = Future()
            self._found.move_to_end(key)
            while self._limit is not None and len(self._found) > self._limit:
                self._drop(next(iter(self._found)))
        if mine:
            self._compute(key, found, make)
        return cast("Value", found.result())

    def _compute(self, key: Key, found: "Future[Any]", make: Callable[[], object]) -> None:
        try:
            found.set_result(make())
        except BaseException as error:  # noqa: BLE001 - for whoever asks: what they get, they raise
            with self._lock:
                if self._found.get(key) is found:
                    if self._error_rest:
                        self._failed[key] = time.monotonic() + self._error_rest
                        error.__cause__ = error.__context__ = None  # they hold on to what was open
                    else:
                        self._drop(key)
            found.set_exception(error.with_traceback(None))

    def discard(self, unwanted: Callable[[Key], bool]) -> None:
        """Forget the keys of which this is true."""
        with self._lock:
            for key in [key for key in self._found if unwanted(key)]:
                self._drop(key)

    def clear(self) -> list[Any]:
        """Forget everything; gives the values that were there."""
        with self._lock:
            values = [found.result() for found in self._found.values() if found.done() and not found.exception()]
            self._found.clear()
            self._failed.clear()
        return values

    def __len__(self) -> int:
        return len(self._found)

    def _drop(self, key: Key) -> None:
        self._found.pop(key, None)
        self._failed.pop(key, None)
