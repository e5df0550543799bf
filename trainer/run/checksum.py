"""SHA-256 of files, remembered until a file changes."""

import contextlib
import hashlib
import sqlite3
import time
from pathlib import Path

from trainer.run.folder import home

SETTLED_AFTER = 2.0
"""Seconds since a file's last change after which its checksum is remembered: coarse clocks hide a second change."""

_TABLE = """
create table if not exists checksum (
    path text primary key, size integer, mtime_ns integer, ctime_ns integer, inode integer, sha256 text
)
"""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits. Raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """The same, from memory if size, times and inode of the file are those of the last call; for large files.

    The memory is `<home>/checksums.sqlite`; without it (a read-only disk) every call reads the file. Raises OSError.
    """
    state = _state(path)
    found = _memory("select size, mtime_ns, ctime_ns, inode, sha256 from checksum where path = ?", _key(path))
    if found is not None and tuple(found[:-1]) == state:
        return str(found[-1])
    sha256 = sha256_of(path)
    if _state(path) == state and time.time_ns() - max(state[1], state[2]) > SETTLED_AFTER * 1e9:
        remember_sha256(path, sha256)
    return sha256


def remember_sha256(path: Path, sha256: str) -> None:
    """Remember the checksum of a file that this process has just written."""
    _memory("insert or replace into checksum values (?, ?, ?, ?, ?, ?)", _key(path), *_state(path), sha256)


def _key(path: Path) -> str:
    return str(path.resolve())


def _state(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _memory(statement: str, *values: str | int) -> tuple[str | int, ...] | None:
    """First row of a statement's result; None if there is none, or where the database cannot be used."""
    try:
        with contextlib.closing(sqlite3.connect(home() / "checksums.sqlite", timeout=5)) as memory, memory:
            memory.execute(_TABLE)
            row: tuple[str | int, ...] | None = memory.execute(statement, values).fetchone()
            return row
    except sqlite3.Error:
        return None
