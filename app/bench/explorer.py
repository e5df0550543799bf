"""Bench of the explorer: a real server on a made-up run of any size, visited by one person and by several at once."""

import asyncio
import os
import random
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from app.bench.visitors import KINDS, Kind, NotAnswered, Paths, Visit, one_by_one, together
from app.server import explorer
from app.settings import Settings
from trainer.bench.machine import Machine
from trainer.bench.repeats import percentile
from trainer.bench.report import Report, shown
from trainer.bench.synthetic_run import KEPT, SyntheticRun, publish_synthetic_run
from trainer.run.folder import RunFolder

RUN = "synthetic-bench"
FEATURE_PAGE_MS = 30.0
"""Server time that a feature page may take for a single visitor."""
SHOWN = {"feature_page": "feature page", "list": "list, 3 filters and a sort", "search": "search"}


@dataclass(frozen=True)
class Load:
    """How the explorer is visited."""

    visitors: int = 4
    rate: float = 50.0
    """Pages asked for per second by all of them together."""
    seconds: float = 10.0
    alone: int = 50
    """Pages of each kind that the single visitor asks for first."""


@dataclass(frozen=True)
class Measured:
    """Everything that was seen."""

    first: dict[Kind, Visit]
    """The very first page of each kind, when nothing is in memory yet."""
    alone: dict[Kind, list[Visit]]
    cpu_ms: dict[Kind, float]
    """Processor time of the server per page of those; the steadier figure on a busy machine."""
    together: list[Visit]
    seconds: float
    """How long the visitors stayed together."""
    file_gb: float
    build_s: float

    def under_load(self, kind: Kind) -> list[Visit]:
        """Visits of one kind among those made together; those made alone where there was none."""
        return [visit for visit in self.together if visit.kind == kind] or self.alone[kind]


def bench_explorer(*, features: int = 8192, load: Load | None = None) -> Report:
    """Build a run, serve it and visit it.

    Raises ServerFailed when the explorer does not start and NotAnswered when it answers with an error.
    """
    load = load or Load()
    machine = Machine()
    with tempfile.TemporaryDirectory(prefix="crossdiff-bench-") as folder:
        began = time.perf_counter()
        run = publish_synthetic_run(RunFolder(Path(folder) / "runs" / RUN), features=features)
        build_s = time.perf_counter() - began
        paths = Paths(RUN, features, run.words, random.Random(0))
        settings = Settings(home=Path(folder), port=free_port())
        with _own_settings(), explorer(settings) as (address, _), _log_in_errors(settings):
            measured = asyncio.run(_visited(address, paths, load, run, build_s))
    return report(measured, features, load, machine)


def report(measured: Measured, features: int, load: Load, machine: Machine) -> Report:
    """What was seen as table and figures; both are server times."""
    rows: list[tuple[str, ...]] = []
    figures: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        alone, crowd = (
            [visit.server_ms for visit in some] for some in (measured.alone[kind], measured.under_load(kind))
        )
        reading = [visit.client_ms for visit in measured.under_load(kind)]
        times = [measured.first[kind].server_ms, measured.cpu_ms[kind], percentile(alone, 0.5), percentile(alone, 0.99)]
        times += [percentile(crowd, 0.5), percentile(crowd, 0.99), percentile(reading, 0.99)]
        rows.append((SHOWN[kind], *map(shown, times), str(len(crowd))))
        figures[kind] = {"p50_ms": percentile(crowd, 0.5), "p99_ms": percentile(crowd, 0.99)}
    per_second = len(measured.together) / measured.seconds
    page = percentile([visit.server_ms for visit in measured.alone["feature_page"]], 0.5)
    verdict = "within" if page < FEATURE_PAGE_MS else "over"
    notes = (
        "Milliseconds by the server's clock; read p99 by the visitors'. first: with nothing in memory yet.",
        f"alone: one visitor, {load.alone} pages of each kind; CPU: the server's processor time per page.",
        f"together: {load.visitors} visitors for {load.seconds:g} s, {per_second:.1f} pages/s ({load.rate:g} wanted).",
        f"A feature page alone takes {page:.1f} ms, {verdict} the {FEATURE_PAGE_MS:g} ms it may take.",
        f"{features:,} features, {KEPT} contexts each: {measured.file_gb:.3g} GB, built in {measured.build_s:.0f} s.",
        machine.note(),
    )
    head = ("", "first", "alone CPU", "alone p50", "alone p99", "together p50", "together p99", "read p99", "pages")
    whole = {**figures, "requests_per_s": per_second, "file_gb": measured.file_gb, "build_s": measured.build_s}
    return Report("Explorer", head, tuple(rows), whole, notes)


async def _visited(address: str, paths: Paths, load: Load, run: SyntheticRun, build_s: float) -> Measured:
    first = {kind: (await one_by_one(address, paths, kind, 1))[0] for kind in KINDS}
    alone: dict[Kind, list[Visit]] = {}
    cpu_ms: dict[Kind, float] = {}
    for kind in KINDS:
        before = _server_seconds()
        alone[kind] = await one_by_one(address, paths, kind, load.alone)
        cpu_ms[kind] = 1000 * (_server_seconds() - before) / load.alone
    began = time.perf_counter()
    crowd = await together(address, paths, visitors=load.visitors, rate=load.rate, seconds=load.seconds)
    seconds, file_gb = time.perf_counter() - began, run.file.stat().st_size / 1e9
    return Measured(first, alone, cpu_ms, crowd, seconds, file_gb, build_s)


def _server_seconds() -> float:
    """Processor time of the explorer, which is the one child of this process."""
    return sum(times.user + times.system for times in (child.cpu_times() for child in psutil.Process().children()))


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _log_in_errors(settings: Settings) -> Iterator[None]:
    """Add what the server said last to an error, because its log goes with the home folder."""
    try:
        yield
    except NotAnswered as error:
        lines = (settings.home / "serve.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        said = f" Its log ends: {lines[-1]}" if lines else ""
        raise NotAnswered(f"{error.fact}{said}", remedy=error.remedy) from error


@contextmanager
def _own_settings() -> Iterator[None]:
    """Without the settings of whoever runs the bench: their labels and their worker are none of its business."""
    kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("CROSSDIFF_")}
    try:
        yield
    finally:
        os.environ.update(kept)
