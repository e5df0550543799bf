"""Finds out what a corpus file holds and in which encoding, and refuses what would be read as something else."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.corpus.dump import ROOT_TAG
from trainer.errors import CorpusError

PROBED_BYTES = 65_536
"""Beginning of a file, decompressed, by which its content is judged."""
KINDS = {
    ".txt": "txt",
    ".md": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".xml": "xml",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""Kind of a file by its suffix, alone or before a suffix of compressed files."""
TABLES = ("parquet", "arrow")
"""Kinds that are not text."""
TOLERATED = 8
"""As many characters of the beginning may be damaged, however short it is,"""
FOREIGN_SHARE = 0.01
"""or this share of bytes that are not UTF-8: in text of another encoding it is higher,"""
CONTROL_SHARE = 0.001
"""or this share of control characters: only binary files have more."""

_ENCODINGS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_BINARY = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",
    b"\x1f\x8b": "gzip-compressed (.gz)",
    b"BZh": "bzip2-compressed (.bz2)",
    b"\xfd7zXZ": "xz-compressed (.xz)",
    b"\x28\xb5\x2f\xfd": "zstandard-compressed (.zst)",
    b"\x04\x22\x4d\x18": "lz4-compressed",
    b"PK\x03\x04": "a zip archive or an office document",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"%PDF": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    **{bytes([0x80, protocol]): "a pickle" for protocol in range(2, 6)},
}
_CONTROLS = frozenset(map(chr, range(32))) - set("\t\n\v\f\r\b\x1b")


class FileType(NamedTuple):
    """What a file holds."""

    kind: str
    """One of the values of KINDS."""
    encoding: str
    """Of a text file; a byte order mark decides, else it is UTF-8."""


def file_type(path: Path, suffix: str, beginning: bytes) -> FileType:
    """The type of a file by its suffix (without one of compression), else by its first bytes.

    Raises CorpusError for binary content, content of another kind than the suffix says, and other encodings.
    """
    found = next((name for magic, name in _BINARY.items() if beginning.startswith(magic)), None)
    encoding = next((name for mark, name in _ENCODINGS.items() if beginning.startswith(mark)), "utf-8")
    kind = KINDS.get(suffix.casefold())
    if found is not None and found != kind:
        if found in TABLES and kind is None:
            return FileType(found, encoding)
        remedy = f"Rename it to end in .{found}." if found in TABLES else "Unpack or convert it to text or JSON lines."
        raise CorpusError(f"{path} is {found} by its content, not {kind or 'text'}. {remedy}")
    if kind in TABLES:
        return FileType(kind, encoding)
    text = beginning.decode(encoding, "replace")
    _refuse_binary(path, text, whole=len(beginning) < PROBED_BYTES)
    return FileType(kind or _kind_of(path, text.lstrip("\ufeff \t\r\n\v\f")), encoding)


def _refuse_binary(path: Path, text: str, *, whole: bool) -> None:
    """Raise CorpusError for text with too many control characters or characters of no known encoding."""
    text = text if whole else text[:-1]  # the last character may be cut
    controls = sum(text.count(control) for control in _CONTROLS)
    if controls > max(TOLERATED, CONTROL_SHARE * len(text)):
        raise CorpusError(
            f"{path} is no text: {controls:,} of its first {len(text):,} characters are control characters. "
            "Give text in UTF-8, JSON lines, CSV, parquet or arrow."
        )
    foreign = text.count("\ufffd")
    if foreign > max(TOLERATED, FOREIGN_SHARE * len(text)):
        raise CorpusError(
            f"{path} is not UTF-8: {foreign:,} of its first {len(text):,} characters cannot be read. Convert it, for "
            f"example with `iconv -f latin1 -t utf-8 {path.name}` if it is Latin-1."
        )


def _kind_of(path: Path, text: str) -> str:
    """The kind of a text file whose suffix says nothing."""
    if text[:15].casefold().startswith(("<!doctype html", "<html")):
        raise CorpusError(f"{path} is a web page; its markup would be read as text. Convert it to text first.")
    prefixes = {ROOT_TAG: "xml", "<?xml": "xml", "[": "json", "{": "json"}
    return next((kind for prefix, kind in prefixes.items() if text.startswith(prefix)), "txt")


def is_metadata(file: Path) -> bool:
    """Whether a file of a folder with records describes them: a README, a licence, the state of a data set."""
    stem = file.name.partition(".")[0].casefold()
    names = ("readme", "license", "licence", "notice", "citation", "changelog", "contributing")
    return stem in names or file.name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def visible_files(folder: Path) -> Iterator[Path]:
    """Files below a folder, sorted, without hidden files and folders."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield file
