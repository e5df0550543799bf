"""Package index: the one place that asks pip to download an archive. Nothing is ever installed."""

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
"""What pip says when there is no network, an index that is down, or a proxy that refuses."""
COUNTED = re.compile(r"Progress (\d+) of (\d+)")
"""A line of pip's raw progress: bytes so far, bytes in all."""


def download(package: str, version: str, folder: Path, *, sha256: str | None, source: bool) -> Path:
    """Download one archive of a package into an empty folder and return its path.

    With a sum, pip refuses every other archive before it runs anything of it. Without one, only wheels
    are taken, because pip runs the build code of a source distribution. Raises PackageError, DiskFull.
    """
    requirement = folder / "requirement.txt"
    pin = f" --hash=sha256:{sha256}" if sha256 else ""
    requirement.write_text(f"{package}=={version}{pin}\n", encoding="utf-8")
    kind = ["--no-binary", package] if source else ["--only-binary", package]
    arrived = folder / "archive"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-input", "--retries", "2", *_progress(), *kind, "--dest", str(arrived), "-r", str(requirement)]
    errors = _run(command, f"{package} {version}")
    files = sorted(arrived.iterdir()) if arrived.is_dir() else []
    if errors is not None or len(files) != 1:
        raise _explain(package, version, errors or "pip wrote no archive", pinned=sha256 is not None)
    return files[0]


def _progress() -> list[str]:
    """Progress that can be read line by line, which pip has had since 24.1."""
    try:
        major, minor = (int(part) for part in metadata.version("pip").split(".")[:2])
    except (metadata.PackageNotFoundError, ValueError):
        return ["--progress-bar", "off"]
    return ["--progress-bar", "raw" if (major, minor) >= (24, 1) else "off"]


def _run(command: list[str], what: str) -> str | None:
    """Run pip with a progress bar; what it said on standard error, or None if all went well."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as pip,
        tqdm(desc=what, unit="B", unit_scale=True, delay=2.0, disable=not sys.stderr.isatty()) as bar,
    ):
        assert pip.stdout is not None, "it is a pipe"
        try:
            for line in pip.stdout:
                if counted := COUNTED.search(line):
                    bar.total = int(counted[2])
                    bar.update(int(counted[1]) - bar.n)
        except BaseException:
            pip.terminate()
            raise
        if pip.wait() == 0:
            return None
        errors.seek(0)
        return errors.read()


def _explain(package: str, version: str, errors: str, *, pinned: bool) -> PackageError | DiskFull:
    """What went wrong, in one sentence with its remedy."""
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
            "Nothing of it was kept. Use another package index."
        )
    kind = "" if pinned else " Only wheels are taken from packages that are not pinned here."
    return PackageError(f"{package} {version} cannot be downloaded: {last}. Check its name and version.{kind}")
