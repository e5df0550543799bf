"""Lets one process at a time write a run or a store; a lock ends with the process that holds it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, ReadWriteLock, Timeout

from trainer.run.folder import RunFolder, read_json

PATIENCE = 1.0
"""Seconds between two attempts, so that Ctrl-C ends the waiting."""

Notify = Callable[[str], None]


@contextlib.contextmanager
def run_lock(folder: RunFolder, notify: Notify) -> Iterator[None]:
    """Hold a run; waits for another process that works on it, and says so."""
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notify(f"{folder.run_id}: {_worker(folder)} works on this run; waiting until it ends (Ctrl-C gives up).")
        _wait(lambda: lock.acquire(timeout=PATIENCE))
    try:
        yield
    finally:
        lock.release()


def is_worked_on(folder: RunFolder) -> bool:
    """Whether a process works on the run now."""
    folder.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@contextlib.contextmanager
def store_lock(store: Path, notify: Notify, *, writing: bool) -> Iterator[None]:
    """Hold a store, alone if `writing`, else with other readers; waits for other processes, and says so."""
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = ReadWriteLock(store.parent / f".{store.name}.lock.db")
    acquire = lock.acquire_write if writing else lock.acquire_read
    try:
        acquire(timeout=0)
    except Timeout:
        activity = "uses these activations" if writing else "harvests these activations"
        notify(f"{store}: another process {activity}; waiting until it ends (Ctrl-C gives up).")
        _wait(lambda: acquire(timeout=PATIENCE))
    try:
        yield
    finally:
        lock.release()


def _wait(attempt: Callable[[], object]) -> None:
    while True:
        with contextlib.suppress(Timeout):
            attempt()
            return


def _worker(folder: RunFolder) -> str:
    """The process that says in progress.json that it works on the run."""
    progress: Any = read_json(folder.progress)
    if isinstance(progress, dict) and isinstance(progress.get("pid"), int):
        return f"process {progress['pid']} on {progress.get('host')}"
    return "another process"
