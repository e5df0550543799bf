"""Reads run folders: which runs there are, and what each is doing now.

The trainer writes these files (`progress.json`, `recipe.yaml`, `current.json`); the explorer only reads
them, and a missing, incomplete or malformed file never hides another run.
"""

import datetime
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STALE_AFTER = 60.0
"""Seconds without an update after which a run marked as running counts as stopped."""

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


def run_names(runs: Path) -> list[str]:
    """Names of the run folders, newest change first."""
    if not runs.is_dir():
        return []
    folders = [path for path in runs.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return [path.name for path in sorted(folders, key=_changed, reverse=True)]


def read_progress(folder: Path, now: datetime.datetime | None = None) -> Progress | None:
    """The run's progress, or None without a readable progress.json.

    A run marked as running whose process is gone, or that has not been updated for a minute, is reported as stopped.
    """
    state = _read_json(folder / "progress.json")
    if state is None:
        return None
    progress = _progress(state)
    if progress.status != "running":
        return progress
    now = now or datetime.datetime.now(datetime.UTC)
    age = (now - progress.updated_at).total_seconds() if progress.updated_at else STALE_AFTER + 1
    alive = _is_alive(state.get("pid"), state.get("host"))
    return progress if alive and age <= STALE_AFTER else _as_stopped(progress, gone=not alive)


def read_plan(folder: Path) -> Plan | None:
    """The plan in the folder's recipe, or None without a readable recipe."""
    try:
        recipe = yaml.load((folder / "recipe.yaml").read_text(encoding="utf-8"), Loader=_YAML)  # noqa: S506 - safe loaders
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return plan_of(recipe) if isinstance(recipe, dict) else None


def plan_of(recipe: dict[str, Any]) -> Plan:
    """The parts of a recipe that pages show; a recipe may lack any of them."""
    crosscoder, training = _section(recipe, "crosscoder"), _section(recipe, "training")
    listed = recipe.get("sources")
    sources = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    return Plan(
        name=str(recipe.get("name", "")),
        sources=tuple(str(entry.get("name", "?")) for entry in sources),
        models=tuple(str(entry.get("model", "?")) for entry in sources),
        variant=str(crosscoder.get("variant", "")),
        features=_integer(crosscoder.get("features")),
        seed=_integer(training.get("seed")),
    )


def results_pointer(folder: Path) -> str | None:
    """Name of the published results file, or None when nothing is published. Raises ValueError when it is malformed."""
    try:
        text = (folder / "current.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    pointer = json.loads(text)
    name = pointer.get("file") if isinstance(pointer, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError("no file name in it")
    return name


_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _progress(state: dict[str, Any]) -> Progress:
    measures = state.get("measures")
    return Progress(
        status=status if (status := state.get("status")) in STATUSES else "stopped",
        stage=state.get("stage"),
        stages=_stages(state.get("stages")),
        message=str(state.get("message") or ""),
        done=_integer(state.get("done")) or 0,
        total=_integer(state.get("total")),
        unit=str(state.get("unit") or ""),
        rate=_decimal(state.get("rate")),
        seconds_left=_decimal(state.get("seconds_left")),
        measures={str(name): float(value) for name, value in measures.items() if _decimal(value) is not None}
        if isinstance(measures, dict)
        else {},
        error=state.get("error"),
        updated_at=_time(state.get("updated_at")),
    )


def _stages(entries: Any) -> tuple[Stage, ...]:
    if not isinstance(entries, list):
        return ()
    return tuple(
        Stage(str(entry.get("stage")), str(entry.get("state")), _decimal(entry.get("seconds")))
        for entry in entries
        if isinstance(entry, dict)
    )


def _as_stopped(progress: Progress, *, gone: bool) -> Progress:
    fact = "The process that ran it is gone." if gone else "It has not reported progress for more than a minute."
    stages = tuple(
        Stage(entry.stage, "stopped" if entry.state == "running" else entry.state, entry.seconds)
        for entry in progress.stages
    )
    fields = {**progress.__dict__, "status": "stopped", "stages": stages, "seconds_left": None}
    return Progress(**{**fields, "error": f"{fact} The same command goes on from here."})


def _is_alive(pid: Any, host: Any) -> bool:
    """Whether a process runs; one on another machine or in another container cannot be checked and counts as alive."""
    if host is not None and host != platform.node():
        return True
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _section(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    section = recipe.get(name)
    return section if isinstance(section, dict) else {}


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _decimal(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(value: Any) -> datetime.datetime | None:
    try:
        time = datetime.datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=datetime.UTC)


def _changed(folder: Path) -> float:
    """When the folder's state last changed; the key that lists the most recently active run first."""
    for name in ("progress.json", "current.json"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return folder.stat().st_mtime
