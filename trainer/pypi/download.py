"""Runs pip to download one archive of a package, without installing it."""

import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from trainer.errors import DiskFull, PackageError

UNREACHABLE = re.compile(
    r"NewConnectionError|NameResolutionError|name resolution|getaddrinfo|Max retries|ConnectTimeout|ReadTimeout|"
    r"timed out|ProxyError|Connection(Reset|Refused|Aborted)?Error|Network is unreachable|Connection refused"
)
"""Matches pip's errors if there is no network, the index is down or a proxy refuses the connection."""
PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")
"""Matches a line of pip's raw progress: bytes so far, total bytes."""


def download(package: str, version: str, folder: Path, *, sha256: str | None, source: bool) -> Path:
    """Download one archive of a package into an empty folder and return its path.

    With a SHA-256, pip rejects any other archive before it runs code from it. Without one, only wheels are accepted,
    because pip runs the build code of a source distribution. Raises PackageError, DiskFull.
    """
    requirement = folder / "requirement.txt"
    pin = f" --hash=sha256:{sha256}" if sha256 else ""
    requirement.write_text(f"{package}=={version}{pin}\n", encoding="utf-8")
    kind = ["--no-binary", package] if source else ["--only-binary", package]
    destination = folder / "archive"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    command += [
        "--no-input",
        "--retries",
        "2",
        *_progress_options(),
        *kind,
        "--dest",
        str(destination),
        "-r",
        str(requirement),
    ]
    errors = _run_pip(command, f"{package} {version}")
    files = sorted(destination.iterdir()) if destination.is_dir() else []
    if errors is not None or len(files) != 1:
        raise _download_error(package, version, errors or "pip wrote no archive", pinned=sha256 is not None)
    return files[0]


def _progress_options() -> list[str]:
    """Options for progress that can be read line by line, which pip has since 24.1."""
    try:
        major, minor = (int(part) for part in metadata.version("pip").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return ["--progress-bar", "off"]
    return ["--progress-bar", "raw" if (major, minor) >= (24, 1) else "off"]


def _run_pip(command: list[str], label: str) -> str | None:
    """Run pip with a progress bar. Returns None on success, else pip's standard error."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as pip,
        tqdm(desc=label, unit="B", unit_scale=True, delay=2.0, disable=not sys.stderr.isatty()) as bar,
    ):
        assert pip.stdout is not None, "stdout is a pipe"
        try:
            for line in pip.stdout:
                if match := PROGRESS_LINE.search(line):
                    bar.total = int(match[2])
                    bar.update(int(match[1]) - bar.n)
        except BaseException:
            pip.terminate()
            raise
        if pip.wait() == 0:
            return None
        errors.seek(0)
        return errors.read()


def _download_error(package: str, version: str, errors: str, *, pinned: bool) -> PackageError | DiskFull:
    """The error for a failed download, with its remedy."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = lines[-1].removeprefix("ERROR: ") if lines else "pip gave no reason"
    if "No space left on device" in errors:
        return DiskFull(f"The disk is full while downloading {package} {version}. Free some room and run it again.")
    if UNREACHABLE.search(errors):
        return PackageError(
            f"{package} {version} cannot be downloaded: the package index does not answer ({last}). "
            "Check the network, or set PIP_INDEX_URL to an index that this machine reaches, and run it again."
        )
    if "No module named pip" in errors:
        return PackageError(f"{package} {version} cannot be downloaded without pip. Run `python -m ensurepip` first.")
    if "DO NOT MATCH THE HASHES" in errors:
        return PackageError(
            f"{package} {version} on this package index is not the archive that is pinned here: its SHA-256 differs. "
            "Nothing was kept. Use another package index."
        )
    kind = "" if pinned else " Only wheels are accepted from packages that are not pinned here."
    return PackageError(f"{package} {version} cannot be downloaded: {last}. Check its name and version.{kind}")
