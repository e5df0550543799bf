"""Reads run folders: which runs there are, and what each is doing now.

The trainer writes these files (`progress.json`, `recipe.yaml`, `current.json`); the explorer only reads
them, and nothing that they can hold hides another run.
"""

import contextlib
import datetime
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import psutil
import yaml

from app.errors import ReaderError

STALE_AFTER = 60.0
"""Seconds without an update after which a run marked as running counts as stopped."""

LARGEST_FILE = 2**20
"""Bytes of such a file at most."""
LONGEST_NAME = 200
"""Characters of a run's name; labels and generations are stored under it."""
LONGEST_TEXT = 4000
"""Characters that are shown of a text in such a file."""
DEEPEST = 50
"""Levels of nesting in a recipe."""
LARGEST_NUMBER = 2.0**53

STATUSES = ("running", "finished", "failed", "stopped")


@dataclass(frozen=True)
class Stage:
    """One stage of a run and how far it is."""

    stage: str
    state: str
    """waiting, running, done, skipped or stopped."""
    seconds: float | None


@dataclass(frozen=True)
class Progress:
    """What a run is doing, or how it ended."""

    status: str
    """running, finished, failed or stopped."""
    stage: str | None
    stages: tuple[Stage, ...]
    message: str
    done: int
    total: int | None
    unit: str
    rate: float | None
    """Units per second."""
    seconds_left: float | None
    measures: dict[str, float]
    """Latest values of what is watched, such as loss, L0 and dead features."""
    error: str | None
    updated_at: datetime.datetime | None

    @property
    def share(self) -> float | None:
        """Part of the present task that is done, 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total else None


@dataclass(frozen=True)
class Plan:
    """What a run compares and fits, by its recipe."""

    name: str
    sources: tuple[str, ...]
    models: tuple[str, ...]
    variant: str
    features: int | None
    seed: int | None


class FolderUnreadable(ReaderError):
    """A file in a run's folder is not what the trainer writes."""

    status = 503
    title = "The run's folder cannot be read"

    def __init__(self, file: str, fact: str) -> None:
        super().__init__(
            f"{file} in its folder cannot be read: {fact}.",
            remedy=f"Remove {file} and run the recipe again; what is done already is kept.",
        )


def run_names(runs: Path) -> list[str]:
    """Names of the run folders that can be opened, newest change first."""
    return [name for name in folder_names(runs) if is_run_name(name)]


def folder_names(runs: Path) -> list[str]:
    """Names of all folders that should be runs, newest change first. Raises ReaderError."""
    try:
        with os.scandir(runs) as entries:
            found = [Path(entry.path) for entry in entries if not entry.name.startswith(".") and _is_folder(entry)]
    except FileNotFoundError:
        return []
    except OSError as error:
        fact = f"The folder of runs, {runs}, cannot be read ({error.strerror})."
        raise ReaderError(fact, remedy="Allow the explorer to read it, or set CROSSDIFF_HOME.") from error
    return [path.name for path in sorted(found, key=_changed, reverse=True)]


def is_run_name(name: str) -> bool:
    """Whether a run can be opened under this name."""
    return not name.startswith(".") and len(name) <= LONGEST_NAME and name.isprintable() and name == shown(name)


def shown(text: str) -> str:
    """Text that can be shown: cut, and without what is no character."""
    return text[:LONGEST_TEXT].encode("utf-8", "replace").decode("utf-8")


def read_progress(folder: Path, now: datetime.datetime | None = None) -> Progress | None:
    """The run's progress, or None without progress.json. Raises FolderUnreadable.

    A run marked as running whose process is gone is reported as stopped; so is one on another machine, or in another
    container, that has not been updated for a minute.
    """
    state = _read_json(folder / "progress.json")
    if state is None:
        return None
    progress = _progress(state)
    if progress.status != "running":
        return progress
    now = now or datetime.datetime.now(datetime.UTC)
    if state.get("host") in (None, platform.node()):
        alive = _is_alive(state.get("pid"), progress.updated_at)
        return progress if alive else _as_stopped(progress, gone=True)
    age = (now - progress.updated_at).total_seconds() if progress.updated_at else STALE_AFTER + 1
    return progress if age <= STALE_AFTER else _as_stopped(progress, gone=False)


def read_plan(folder: Path) -> Plan | None:
    """The plan in the folder's recipe, or None without a recipe. Raises FolderUnreadable."""
    text = _read_text(folder / "recipe.yaml")
    if text is None:
        return None
    try:
        _require_plain(text)
        recipe = yaml.load(text, Loader=_YAML)  # noqa: S506 - safe loaders
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise FolderUnreadable("recipe.yaml", f"it is no YAML ({type(error).__name__})") from None
    return plan_of(recipe) if isinstance(recipe, dict) else None


def _require_plain(text: str) -> None:
    """Raise ValueError for YAML that no recipe is: deep nesting overflows the parser's stack, merges multiply."""
    depth = 0
    for event in yaml.parse(text, Loader=_YAML):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST or (isinstance(event, yaml.ScalarEvent) and event.value == "<<"):
            raise ValueError


def plan_of(recipe: dict[str, Any]) -> Plan:
    """The parts of a recipe that pages show; a recipe may lack any of them."""
    crosscoder, training = _section(recipe, "crosscoder"), _section(recipe, "training")
    listed = recipe.get("sources")
    sources = [entry for entry in listed[:64] if isinstance(entry, dict)] if isinstance(listed, list) else []
    return Plan(
        name=_text(recipe.get("name")),
        sources=tuple(_text(entry.get("name")) or "?" for entry in sources),
        models=tuple(_text(entry.get("model")) or "?" for entry in sources),
        variant=_text(crosscoder.get("variant")),
        features=_integer(crosscoder.get("features")),
        seed=_integer(training.get("seed")),
    )


def results_pointer(folder: Path) -> str | None:
    """Name of the published results file, or None when nothing is published. Raises ValueError when it is malformed."""
    try:
        pointer = _read_json(folder / "current.json")
    except FolderUnreadable as error:
        raise ValueError(error.fact) from None
    if pointer is None:
        return None
    name = pointer.get("file")
    if not isinstance(name, str) or Path(name).name != name or not is_run_name(name):
        raise ValueError("no file name in it")
    return name


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _progress(state: dict[str, Any]) -> Progress:
    return Progress(
        status=status if (status := state.get("status")) in STATUSES else "stopped",
        stage=_text(state.get("stage")) or None,
        stages=_stages(state.get("stages")),
        message=_text(state.get("message")),
        done=_integer(state.get("done")) or 0,
        total=_integer(state.get("total")),
        unit=_text(state.get("unit")),
        rate=_decimal(state.get("rate")),
        seconds_left=_decimal(state.get("seconds_left")),
        measures=_measures(state.get("measures")),
        error=_text(state.get("error")) or None,
        updated_at=_time(state.get("updated_at")),
    )


def _stages(entries: Any) -> tuple[Stage, ...]:
    if not isinstance(entries, list):
        return ()
    return tuple(
        Stage(_text(entry.get("stage")), _text(entry.get("state")), _decimal(entry.get("seconds")))
        for entry in entries[:32]
        if isinstance(entry, dict)
    )


def _measures(found: Any) -> dict[str, float]:
    if not isinstance(found, dict):
        return {}
    named = {_text(name): _decimal(value) for name, value in list(found.items())[:64]}
    return {name: value for name, value in named.items() if value is not None}


def _as_stopped(progress: Progress, *, gone: bool) -> Progress:
    fact = "The process that ran it is gone." if gone else "It has not reported progress for more than a minute."
    stages = tuple(
        Stage(entry.stage, "stopped" if entry.state == "running" else entry.state, entry.seconds)
        for entry in progress.stages
    )
    fields = {**progress.__dict__, "status": "stopped", "stages": stages, "seconds_left": None}
    return Progress(**{**fields, "error": f"{fact} The same command goes on from here."})


def _is_alive(pid: Any, updated_at: datetime.datetime | None) -> bool:
    """Whether the process that wrote this still runs here; one that began later is another under the same number."""
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
        return False
    try:
        began = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True
    return updated_at is None or began <= updated_at.timestamp() + STALE_AFTER


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file, or None without a file. Raises FolderUnreadable."""
    text = _read_text(path)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FolderUnreadable(path.name, f"it is no JSON ({shown(str(error))[:200]})") from None
    if not isinstance(value, dict):
        raise FolderUnreadable(path.name, "it holds no object")
    return value


def _read_text(path: Path) -> str | None:
    """The text of a regular file, or None when there is none. Raises FolderUnreadable."""
    try:
        # Opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FolderUnreadable(path.name, str(error.strerror)) from None
    try:
        if not S_ISREG(os.fstat(descriptor).st_mode):
            raise FolderUnreadable(path.name, "it is no regular file")
        data = os.read(descriptor, LARGEST_FILE + 1)
        if len(data) > LARGEST_FILE:
            raise FolderUnreadable(path.name, f"it is larger than {LARGEST_FILE:,} bytes")
        return data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FolderUnreadable(path.name, f"it is no text ({type(error).__name__})") from None
    finally:
        os.close(descriptor)


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, dict) else {}


def _text(value: Any) -> str:
    """Text to show of a field that should be text; empty for anything but text or a number."""
    return shown(str(value)) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _integer(value: Any) -> int | None:
    number = _decimal(value)
    return None if number is None else int(value)


def _decimal(value: Any) -> float | None:
    """A finite number that a float holds exactly enough; None for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST_NUMBER:
        return None
    return float(value)


def _time(value: Any) -> datetime.datetime | None:
    try:
        time = datetime.datetime.fromisoformat(value)
        return (time if time.tzinfo else time.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    with contextlib.suppress(OSError):
        return entry.is_dir()
    return False


def _changed(folder: Path) -> float:
    """When the folder's state last changed; the key that lists the most recently active run first."""
    for name in ("progress.json", "current.json"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0
