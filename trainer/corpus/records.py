"""Reads the records of a text, JSON, CSV, parquet, arrow or XML file one by one, in bounded memory."""

import bz2
import contextlib
import gzip
import json
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

from trainer.corpus import dump
from trainer.corpus.file_type import KINDS, PROBED_BYTES, TABLES, file_type
from trainer.corpus.tables import ChooseColumns, arrow_rows, csv_rows, parquet_rows
from trainer.corpus.tally import PartTally
from trainer.errors import CorpusError


def _open_zstandard(path: Path) -> IO[bytes]:
    import pyarrow

    return BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}

MIN_TEXT_CHARACTERS = 2_000
"""A document of a .txt file ends at the first blank line after this many characters,"""
MAX_TEXT_CHARACTERS = 8_000
"""or at the first line end after this many, or inside a line that is longer."""
MAX_RECORD_CHARACTERS = 64_000_000
"""A longer record is not read: the file has the wrong format."""
PROBED_LINES = 100
"""A file is rejected if most of its first so many lines are unreadable."""
CHUNK = 1 << 20

_TRUNCATION_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


def read_records(path: Path, tally: PartTally, choose_columns: ChooseColumns) -> Iterator[Any]:
    """Yield the records of one file: JSON values, rows of tables, or texts of .txt files and MediaWiki exports.

    `choose_columns` takes the column names of a table and returns those to read. A truncated file yields its complete
    records. Raises CorpusError for a file that cannot be opened or whose content does not match its name.
    """
    count = 0
    try:
        for record in _read_file(path, tally, choose_columns):
            count += 1
            yield record
    except (*_TRUNCATION_ERRORS, OSError) as error:
        # Decompressors give no number to the errors of what they read.
        if isinstance(error, OSError) and error.errno is not None:
            raise CorpusError(f"{path} cannot be read: {error.strerror}. Check the file and its permissions.") from None
        if not count:
            raise CorpusError(f"{path} is damaged ({error}): nothing in it can be read. Fetch it again.") from None
        tally.notify_once(f"{path.name} is truncated after {count:,} records; those are used.")
    if not count:
        tally.notify_once(f"{path.name} holds no documents.")


def has_known_suffix(file: Path) -> bool:
    """Whether a file's name says that it holds records or text."""
    return _without_compression(file).suffix.casefold() in KINDS


def file_kind(path: Path) -> str:
    """What a file with a known suffix holds, by that suffix."""
    return KINDS[_without_compression(path).suffix.casefold()]


def _read_file(path: Path, tally: PartTally, choose_columns: ChooseColumns) -> Iterator[Any]:
    beginning = _beginning(path)
    kind, encoding = file_type(path, _without_compression(path).suffix, beginning)
    if kind in TABLES:
        yield from _table_rows(path, kind, choose_columns)
        return
    if kind == "xml" and dump.ROOT_TAG not in beginning.decode(encoding, "replace"):
        raise CorpusError(f"{path} is XML, but no MediaWiki export. Convert it to text or JSON lines.")
    encoding = "utf-8-sig" if encoding == "utf-8" else encoding
    with open_decompressed(path) as raw, TextIOWrapper(raw, encoding, errors="replace", newline="") as lines:
        if kind == "xml":
            yield from dump.read_articles(lines)
        elif kind == "jsonl":
            yield from _json_lines(lines, path, tally)
        elif kind == "json":
            yield from _json_values(lines, path, tally)
        elif kind == "csv":
            yield from csv_rows(lines, path)
        else:
            yield from _split_text(lines)


def _beginning(path: Path) -> bytes:
    """The first PROBED_BYTES of a file, decompressed; fewer if it is shorter or truncated."""
    found = b""
    with open_decompressed(path) as raw, contextlib.suppress(*_TRUNCATION_ERRORS):
        while len(found) < PROBED_BYTES and (part := raw.read(min(1024, PROBED_BYTES - len(found)))):
            found += part
    return found


def _table_rows(path: Path, kind: str, choose_columns: ChooseColumns) -> Iterator[Any]:
    read_rows = parquet_rows if kind == "parquet" else arrow_rows
    if path.suffix not in COMPRESSED:
        with path.open("rb") as file:
            yield from read_rows(file, path, choose_columns)
        return
    # Tables need random access, so a compressed file is decompressed first.
    with tempfile.TemporaryFile() as decompressed, open_decompressed(path) as raw:
        while chunk := raw.read(CHUNK):
            decompressed.write(chunk)
        decompressed.seek(0)
        yield from read_rows(decompressed, path, choose_columns)


def _without_compression(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in COMPRESSED else path


def open_decompressed(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed as its suffix says."""
    opener = COMPRESSED.get(path.suffix)
    file: IO[bytes] = opener(path) if opener else path.open("rb")
    return file


def _split_text(lines: TextIO) -> Iterator[str]:
    """Split a text file at blank lines into documents of about 2,000 characters."""
    block_lines: list[str] = []
    size = 0
    while line := lines.readline(MAX_TEXT_CHARACTERS):
        block_lines.append(line)
        size += len(line)
        if size >= MAX_TEXT_CHARACTERS or (size >= MIN_TEXT_CHARACTERS and not line.strip()):
            yield "".join(block_lines)
            block_lines, size = [], 0
    if block_lines:
        yield "".join(block_lines)


def _json_lines(lines: TextIO, path: Path, tally: PartTally) -> Iterator[Any]:
    read = unreadable = 0
    while line := lines.readline(MAX_RECORD_CHARACTERS):
        if not line.strip():
            continue
        read += 1
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            unreadable += 1
            tally.unreadable += 1
        else:
            yield record
        if read == PROBED_LINES:
            _reject_if_most(unreadable, read, path)
    _reject_if_most(unreadable, read, path)


def _reject_if_most(unreadable: int, read: int, path: Path) -> None:
    if unreadable * 2 > read:
        raise CorpusError(
            f"{path} is not JSON lines: {unreadable:,} of the first {read:,} lines cannot be read. "
            "Give one JSON object per line, or name a file that is one JSON list .json."
        )


def _json_values(stream: TextIO, path: Path, tally: PartTally) -> Iterator[Any]:
    """Yield the elements of one JSON list, or concatenated values; a truncated list yields its complete elements."""
    decoder = json.JSONDecoder()
    buffer = stream.read(CHUNK).lstrip()
    at = 1 if buffer.startswith("[") else 0
    count = 0
    ended = False
    while True:
        while at < len(buffer) and buffer[at] in " \t\r\n,":
            at += 1
        end = None
        with contextlib.suppress(ValueError, RecursionError):
            value, end = decoder.raw_decode(buffer, at)
        # A value that reaches the end of the buffer may continue in the file.
        if end is not None and (ended or end < len(buffer)):
            yield value
            count += 1
            at = end
            continue
        if ended or len(buffer) - at > MAX_RECORD_CHARACTERS or buffer.startswith("]", at):
            break
        # Doubles the buffer, so that a long record is parsed only a few times.
        more = stream.read(max(CHUNK, len(buffer) - at))
        ended = not more
        buffer, at = buffer[at:] + more, 0
    _report_end(buffer[at:], count, path, tally)


def _report_end(rest: str, count: int, path: Path, tally: PartTally) -> None:
    if not rest or rest.startswith("]"):
        return
    if not count:
        raise CorpusError(f"{path} is not JSON: its first value cannot be read. Check the file.")
    tally.notify_once(f"{path.name} is truncated after {count:,} records; those are used.")
