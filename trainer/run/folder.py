"""Paths of all files of a run, and atomic writing of files."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DiskFull, RunError, UsageError
from trainer.recipe.recipe import Recipe

FILE_SUFFIXES = frozenset({".duckdb", ".json", ".jsonl", ".parquet", ".safetensors", ".txt", ".yaml"})
"""Of files in a run's folder; its folders have none."""


def home() -> Path:
    """Folder of runtime data: CROSSDIFF_HOME, else ./data. Raises UsageError for a `~name` of no user."""
    path = Path(os.environ.get("CROSSDIFF_HOME") or "data")
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"CROSSDIFF_HOME is {path}, and there is no such user. Give a whole path.") from None


@dataclass(frozen=True)
class RunFolder:
    """One run's folder, `<home>/runs/<name>-<hash>/`."""

    path: Path

    @classmethod
    def for_recipe(cls, recipe: Recipe, store: str | None = None) -> "RunFolder":
        """The folder of a recipe's run; it need not exist. `store` identifies an activation store given to it."""
        fingerprint = recipe.fingerprint()
        if store is not None:
            fingerprint = hashlib.sha256(f"{fingerprint} {store}".encode()).hexdigest()[:8]
        return cls(home() / "runs" / f"{recipe.name}-{fingerprint}")

    @classmethod
    def containing(cls, recipe: Path) -> "RunFolder | None":
        """The folder of the run that a recipe file is stored in, or None for a file elsewhere."""
        folder = recipe.absolute().parent
        is_own_recipe = folder.parent == home() / "runs" and recipe.name == cls(folder).recipe.name
        return cls(folder) if is_own_recipe else None

    @property
    def run_id(self) -> str:
        """The run's id: its folder's name."""
        return self.path.name

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def store(self) -> Path:
        """Pointer to the activation store: JSON with the key `path`."""
        return self.path / "activations.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of training checkpoints."""
        return self.path / "checkpoints"

    @property
    def ensemble(self) -> Path:
        """Folder of the residual dictionaries that were trained beside the crosscoder."""
        return self.path / "ensemble"

    @property
    def crosscoder(self) -> Path:
        """Description of the trained crosscoder, without its weights."""
        return self.path / "crosscoder.json"

    @property
    def weights(self) -> Path:
        """Weights of the trained crosscoder."""
        return self.path / "crosscoder.safetensors"

    @property
    def metrics(self) -> Path:
        """Training metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """Measures on held-out rows."""
        return self.path / "evaluation.json"

    @property
    def baselines(self) -> Path:
        """Comparison of the models without a crosscoder, as rows of the results' tables."""
        return self.path / "baselines.json"

    @property
    def spans(self) -> Path:
        """How far the models' predictions are apart on every span that was compared."""
        return self.path / "spans.parquet"

    @property
    def calibration(self) -> Path:
        """Outcome of the noise nulls, the placebos and the spike-ins."""
        return self.path / "calibration.json"

    @property
    def calibration_work(self) -> Path:
        """Folder of the crosscoders trained for calibration."""
        return self.path / "calibration"

    @property
    def progress(self) -> Path:
        """Current state of the run; the home page shows it live."""
        return self.path / "progress.json"

    @property
    def stages(self) -> Path:
        """Record of the finished stages, see `trainer.run.record`."""
        return self.path / "stages.json"

    @property
    def current(self) -> Path:
        """Pointer to the published results: JSON with the key `file`."""
        return self.path / "current.json"

    @property
    def log(self) -> Path:
        """One line per event."""
        return self.path / "log.txt"

    def require_files(self) -> None:
        """Raise RunError if a folder, a pipe or a device is where a file belongs: a pipe would be waited for."""
        for path in self.path.iterdir():
            is_folder = path.is_dir() and path.suffix not in FILE_SUFFIXES
            if path.exists() and not path.is_file() and not is_folder:
                raise RunError(f"{path} is no file. Remove it, and run the same command again.")

    def results(self) -> Path | None:
        """The published results file; None if there is none, or if the pointer to it is damaged."""
        pointer = read_json(self.current)
        name = pointer.get("file") if isinstance(pointer, dict) else None
        return self.path / name if isinstance(name, str) and Path(name).name == name else None


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Context with a draft path to write to; renamed to `path` if the body succeeds, else removed.

    Unless it is not `durable`, the content is on the disk before it gets its name, and the name before this returns,
    so that no power cut leaves half a file under a final name. Raises DiskFull if the disk is full; a previous file
    at `path` is then kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    discard(draft)
    try:
        yield draft
        if durable:
            for part in (*draft.rglob("*"), draft) if draft.is_dir() else (draft,):
                flush(part)
        draft.replace(path)
        if durable:
            flush(path.parent)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"The disk is full while writing {path.name} in {path.parent}. "
            "Free some room and run the same command again; it resumes from the last complete file."
        ) from error
    finally:
        discard(draft)


def flush(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means a full disk; safetensors and DuckDB only say so in their exceptions' text."""
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def discard(path: Path) -> None:
    """Remove a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The value in a JSON file; None if there is no such file, or if it is damaged."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def write_json(path: Path, value: object, *, durable: bool = True) -> None:
    """Write JSON atomically; see `atomic_write`. Raises ValueError for NaN and infinity, which JSON does not have."""
    with atomic_write(path, durable=durable) as draft:
        draft.write_text(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
