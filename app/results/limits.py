"""Limits of every query on results: time, memory and rows. A results file may come from anywhere."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import psutil

QUERY_SECONDS = 60.0
"""Time that a query of a page may take."""
LISTING_SECONDS = 5.0
"""Time that a query may take where many runs are listed."""
ROWS_AT_MOST = 10_000_000
"""Rows that a query may give; a run of 131,072 features has 8 million tokens at peaks."""
SMALLEST_MEMORY, LARGEST_MEMORY = 256, 4096
"""Megabytes that the queries on one file may use, whatever the machine."""
CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")
"""Where a container's limit stands, if there is one."""
CHECK_EVERY = 0.2
"""Seconds between two looks at the clock."""


def memory_limit() -> str:
    """Memory that the queries on one file may use: a quarter of this machine's, or of this container's."""
    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # `max` where there is no limit
        total = min(total, int(CONTROL_GROUP.read_text(encoding="ascii")))
    return f"{min(max(total // 4 // 2**20, SMALLEST_MEMORY), LARGEST_MEMORY)}MiB"


class Watchdog:
    """Interrupts queries that run past their time, from one thread that lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[object, tuple[float, duckdb.DuckDBPyConnection]] = {}
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def limit(self, cursor: duckdb.DuckDBPyConnection, seconds: float) -> Iterator[None]:
        """Interrupt what the cursor does in the body once the seconds are over."""
        query = object()
        with self._lock:
            self._running[query] = (time.monotonic() + seconds, cursor)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="query-limits", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                del self._running[query]

    def _watch(self) -> None:
        idle = 0
        while True:
            time.sleep(CHECK_EVERY)
            with self._lock:
                idle = 0 if self._running else idle + 1
                if idle > 50:
                    self._thread = None
                    return
                for deadline, cursor in self._running.values():
                    if time.monotonic() > deadline:
                        cursor.interrupt()


WATCHDOG = Watchdog()
"""Of this process."""
