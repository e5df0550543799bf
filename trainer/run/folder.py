"""Run folder: where every artefact of a run lies; the only place that spells file names."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import DiskFull
from trainer.recipe.recipe import Recipe


def home() -> Path:
    """Where runtime data lives: CROSSDIFF_HOME, else ./data."""
    return Path(os.environ.get("CROSSDIFF_HOME", "data")).absolute()


@dataclass(frozen=True)
class RunFolder:
    """One run's folder, `<home>/runs/<name>-<hash>/`."""

    path: Path

    @classmethod
    def of(cls, recipe: Recipe) -> "RunFolder":
        """The folder of a recipe, whether it exists or not."""
        return cls(home() / "runs" / f"{recipe.name}-{recipe.fingerprint()}")

    @classmethod
    def around(cls, recipe: Path) -> "RunFolder | None":
        """The folder of the run whose own recipe a file is, or None for a file elsewhere."""
        folder = recipe.absolute().parent
        mine = folder.parent == home() / "runs" and recipe.name == cls(folder).recipe.name
        return cls(folder) if mine else None

    @property
    def run(self) -> str:
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
    def crosscoder(self) -> Path:
        """Description of the trained crosscoder; the weights lie beside it."""
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
        """What comparing the models says without a crosscoder, as rows of the results' tables."""
        return self.path / "baselines.json"

    @property
    def calibration(self) -> Path:
        """What null run and spike-ins said."""
        return self.path / "calibration.json"

    @property
    def calibration_work(self) -> Path:
        """Folder of the crosscoders that were trained to calibrate."""
        return self.path / "calibration"

    @property
    def progress(self) -> Path:
        """What the run is doing now; the home page shows it live."""
        return self.path / "progress.json"

    @property
    def stages(self) -> Path:
        """Fingerprint of the inputs of every finished stage."""
        return self.path / "stages.json"

    @property
    def current(self) -> Path:
        """Pointer to the published results: JSON with the key `file`."""
        return self.path / "current.json"

    @property
    def log(self) -> Path:
        """One line per event."""
        return self.path / "log.txt"

    def finished_stages(self) -> dict[str, str]:
        """Fingerprint of the inputs of every finished stage; empty when nothing is known."""
        try:
            found: dict[str, str] = json.loads(self.stages.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return found

    def results(self) -> Path | None:
        """The published results file, or None while there is none."""
        if not self.current.is_file():
            return None
        return self.path / str(json.loads(self.current.read_text())["file"])


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a draft to write; rename it to `path` if the body succeeds, else discard it.

    Raises DiskFull when the disk runs out of room; whatever was at `path` before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    discard(draft)
    try:
        yield draft
        draft.replace(path)
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFull(
            f"The disk is full while writing {path.name} in {path.parent}. "
            "Free some room and run the same command again; it goes on from the last complete piece."
        ) from error
    finally:
        discard(draft)


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that no room is left; safetensors and DuckDB say so in their own exceptions' text."""
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def discard(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all."""
    with published(path) as draft:
        draft.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
