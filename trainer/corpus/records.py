"""Reads the records of a text, JSON, parquet or XML file one by one, in bounded memory."""

import bz2
import contextlib
import gzip
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, TextIO

from trainer.corpus import dump
from trainer.corpus.tally import PartTally
from trainer.errors import CorpusError

COMPRESSED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SUFFIXES = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet", ".xml")
"""Suffixes that determine the file type, alone or before a suffix in COMPRESSED."""

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


def read_records(path: Path, tally: PartTally, choose_column: Callable[[list[str]], str]) -> Iterator[Any]:
    """Yield the records of one file: JSON values, parquet rows, or texts of .txt files and MediaWiki exports.

    `choose_column` takes the column names of a parquet file and returns the one to read. A truncated file yields its
    complete records. Raises CorpusError for a file that cannot be opened or whose content does not match its name.
    """
    count = 0
    try:
        for record in _read_file(path, tally, choose_column):
            count += 1
            yield record
    except _TRUNCATION_ERRORS as error:
        if not count:
            raise CorpusError(f"{path} is damaged ({error}): nothing in it can be read. Fetch it again.") from None
        tally.notify_once(f"{path.name} is truncated after {count:,} records; those are used.")
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read: {error.strerror or error}. Check the file and its permissions."
        ) from None
    if not count:
        tally.notify_once(f"{path.name} holds no documents.")


def _read_file(path: Path, tally: PartTally, choose_column: Callable[[list[str]], str]) -> Iterator[Any]:
    file_type = _file_type(path)
    if file_type == "parquet":
        yield from _parquet_records(path, choose_column)
        return
    with _open(path) as raw, TextIOWrapper(raw, "utf-8-sig", errors="replace", newline="") as lines:
        if file_type == "xml":
            yield from dump.read_articles(lines)
        elif file_type == "jsonl":
            yield from _json_lines(lines, path, tally)
        elif file_type == "json":
            yield from _json_values(lines, path, tally)
        else:
            yield from _split_text(lines)


def _file_type(path: Path) -> str:
    """The file type by suffix, else by the first bytes."""
    name = path.with_suffix("") if path.suffix in COMPRESSED else path
    known = {".md": "txt", ".ndjson": "jsonl"}
    if name.suffix in SUFFIXES:
        return known.get(name.suffix, name.suffix[1:])
    with _open(path) as file:
        beginning = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    prefixes = {b"PAR1": "parquet", dump.ROOT_TAG.encode(): "xml", b"<?xml": "xml", b"[": "json", b"{": "json"}
    return next((file_type for prefix, file_type in prefixes.items() if beginning.startswith(prefix)), "txt")


def _open(path: Path) -> IO[bytes]:
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


def _parquet_records(path: Path, choose_column: Callable[[list[str]], str]) -> Iterator[Any]:
    import tempfile

    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as decompressed:
        # Parquet needs random access, so a compressed file is decompressed first.
        file: Path | IO[bytes] = path
        if path.suffix in COMPRESSED:
            with _open(path) as raw:
                while chunk := raw.read(CHUNK):
                    decompressed.write(chunk)
            file = decompressed
        try:
            table = pyarrow.parquet.ParquetFile(file)
            column = choose_column(list(table.schema_arrow.names))
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise CorpusError(f"{path} is not a readable parquet file: {error}. Fetch or write it again.") from None
