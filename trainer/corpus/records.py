"""Records: what a file of text holds, one by one, in bounded memory."""

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

PACKED: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
ENDINGS = (".txt", ".md", ".jsonl", ".ndjson", ".json", ".parquet", ".xml")
"""Endings that say what a file is, alone or before one of PACKED."""

TEXT_CHARACTERS = 2_000
"""A document of a .txt file ends at the first blank line after this many characters,"""
TEXT_LIMIT = 8_000
"""or at any line end after this many, or right there when there is none."""
RECORD_CHARACTERS = 64_000_000
"""A longer record is not read: it is a file in the wrong format."""
PROBED_LINES = 100
"""After this many lines, a file in which most are unreadable is given up."""
CHUNK = 1 << 20

_BROKEN = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError)


def records(path: Path, tally: PartTally, choose: Callable[[list[str]], str]) -> Iterator[Any]:
    """Records of one file: mappings of JSON and parquet, texts of .txt and of MediaWiki exports.

    `choose` takes the column names of a parquet file and says which one to read. Raises CorpusError
    for a file that cannot be opened or is not what its name says; one that breaks off gives what is whole.
    """
    count = 0
    try:
        for record in _reader(path, tally, choose):
            count += 1
            yield record
    except _BROKEN as error:
        if not count:
            raise CorpusError(f"{path} is damaged ({error}): nothing in it can be read. Fetch it again.") from None
        tally.say(f"{path.name} breaks off after {count:,} records; those are used.")
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror or error}. Check the file and its rights.") from None
    if not count:
        tally.say(f"{path.name} holds no documents.")


def _reader(path: Path, tally: PartTally, choose: Callable[[list[str]], str]) -> Iterator[Any]:
    kind = _kind(path)
    if kind == "parquet":
        yield from _parquet(path, choose)
        return
    with _opened(path) as packed, TextIOWrapper(packed, "utf-8-sig", errors="replace", newline="") as lines:
        if kind == "xml":
            yield from dump.pages(lines)
        elif kind == "jsonl":
            yield from _json_lines(lines, path, tally)
        elif kind == "json":
            yield from _json_values(lines, path, tally)
        else:
            yield from _texts(lines)


def _kind(path: Path) -> str:
    """The kind of file, by its name, else by how it begins."""
    name = path.with_suffix("") if path.suffix in PACKED else path
    known = {".md": "txt", ".ndjson": "jsonl"}
    if name.suffix in ENDINGS:
        return known.get(name.suffix, name.suffix[1:])
    with _opened(path) as file:
        beginning = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    signs = {b"PAR1": "parquet", dump.OPENING.encode(): "xml", b"<?xml": "xml", b"[": "json", b"{": "json"}
    return next((kind for sign, kind in signs.items() if beginning.startswith(sign)), "txt")


def _opened(path: Path) -> IO[bytes]:
    opener = PACKED.get(path.suffix)
    file: IO[bytes] = opener(path) if opener else path.open("rb")
    return file


def _texts(lines: TextIO) -> Iterator[str]:
    """Documents of a text file: blocks between blank lines, gathered up to about 2,000 characters."""
    gathered: list[str] = []
    size = 0
    while line := lines.readline(TEXT_LIMIT):
        gathered.append(line)
        size += len(line)
        if size >= TEXT_LIMIT or (size >= TEXT_CHARACTERS and not line.strip()):
            yield "".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield "".join(gathered)


def _json_lines(lines: TextIO, path: Path, tally: PartTally) -> Iterator[Any]:
    read = unreadable = 0
    while line := lines.readline(RECORD_CHARACTERS):
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
            _give_up_when_most(unreadable, read, path)
    _give_up_when_most(unreadable, read, path)


def _give_up_when_most(unreadable: int, read: int, path: Path) -> None:
    if unreadable * 2 > read:
        raise CorpusError(
            f"{path} is not JSON lines: {unreadable:,} of the first {read:,} lines cannot be read. "
            "Give one JSON object per line, or name a file that is one JSON list .json."
        )


def _json_values(stream: TextIO, path: Path, tally: PartTally) -> Iterator[Any]:
    """Elements of one JSON list, or values one after the other; a list cut off gives its complete elements."""
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
        # A value that reaches the end of the buffer may go on in the file.
        if end is not None and (ended or end < len(buffer)):
            yield value
            count += 1
            at = end
            continue
        if ended or len(buffer) - at > RECORD_CHARACTERS or buffer.startswith("]", at):
            break
        # Twice as much each time: a record of any size is tried few times.
        more = stream.read(max(CHUNK, len(buffer) - at))
        ended = not more
        buffer, at = buffer[at:] + more, 0
    _say_how_it_ended(buffer[at:], count, path, tally)


def _say_how_it_ended(rest: str, count: int, path: Path, tally: PartTally) -> None:
    if not rest or rest.startswith("]"):
        return
    if not count:
        raise CorpusError(f"{path} is not JSON: its first value cannot be read. Check the file.")
    tally.say(f"{path.name} breaks off after {count:,} records; those are used.")


def _parquet(path: Path, choose: Callable[[list[str]], str]) -> Iterator[Any]:
    import tempfile

    import pyarrow
    import pyarrow.parquet

    with tempfile.TemporaryFile() as unpacked:
        # Parquet is read from its end; a packed one has to be unpacked first.
        file: Path | IO[bytes] = path
        if path.suffix in PACKED:
            with _opened(path) as packed:
                while block := packed.read(CHUNK):
                    unpacked.write(block)
            file = unpacked
        try:
            table = pyarrow.parquet.ParquetFile(file)
            column = choose(list(table.schema_arrow.names))
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                yield from batch.to_pylist()
        except pyarrow.ArrowException as error:
            raise CorpusError(f"{path} is not a readable parquet file: {error}. Fetch or write it again.") from None
