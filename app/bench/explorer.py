"""Load test of the explorer: a real server on a synthetic run, with one visitor and with several."""

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

from app.bench.visitors import KINDS, Kind, NotAnswered, Paths, Visit, visit_one_by_one, visit_together
from app.server import explorer_process
from app.settings import Settings
from trainer.bench.machine import Machine
from trainer.bench.repeats import percentile
from trainer.bench.report import Report, formatted
from trainer.bench.synthetic_run import CONTEXTS_PER_FEATURE, SyntheticRun, publish_synthetic_run
from trainer.run.folder import RunFolder

RUN = "synthetic-bench"
FEATURE_PAGE_MS = 30.0
"""Limit of the server time of a feature page for a single visitor."""
KIND_TITLES = {"feature_page": "feature page", "list": "list, 3 filters and a sort", "search": "search"}


@dataclass(frozen=True)
class Load:
    """Parameters of the load."""

    visitors: int = 4
    rate: float = 50.0
    """Pages per second that all visitors request together."""
    seconds: float = 10.0
    alone: int = 50
    """Pages of each kind that a single visitor requests first."""


@dataclass(frozen=True)
class LoadResult:
    """Measurements of all visits."""

    first: dict[Kind, Visit]
    """The first page of each kind, with cold caches."""
    alone: dict[Kind, list[Visit]]
    cpu_ms: dict[Kind, float]
    """Server CPU time per page of `alone`; more stable than wall time on a busy machine."""
    together: list[Visit]
    seconds: float
    """Duration of the concurrent visits."""
    file_gb: float
    build_s: float

    def under_load(self, kind: Kind) -> list[Visit]:
        """Concurrent visits of one kind; those of the single visitor when there was none."""
        return [visit for visit in self.together if visit.kind == kind] or self.alone[kind]


def bench_explorer(*, features: int = 8192, load: Load | None = None) -> Report:
    """Publish a synthetic run, serve it and measure visits.

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
        with _default_settings(), explorer_process(settings) as (address, _), _log_tail_in_errors(settings):
            measured = asyncio.run(_measure(address, paths, load, run, build_s))
    return report(measured, features, load, machine)


def report(measured: LoadResult, features: int, load: Load, machine: Machine) -> Report:
    """The measurements as a table and figures, both of server times."""
    rows: list[tuple[str, ...]] = []
    figures: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        alone, loaded = (
            [visit.server_ms for visit in visits] for visits in (measured.alone[kind], measured.under_load(kind))
        )
        client = [visit.client_ms for visit in measured.under_load(kind)]
        times = [measured.first[kind].server_ms, measured.cpu_ms[kind], percentile(alone, 0.5), percentile(alone, 0.99)]
        times += [percentile(loaded, 0.5), percentile(loaded, 0.99), percentile(client, 0.99)]
        rows.append((KIND_TITLES[kind], *map(formatted, times), str(len(loaded))))
        figures[kind] = {"p50_ms": percentile(loaded, 0.5), "p99_ms": percentile(loaded, 0.99)}
    per_second = len(measured.together) / measured.seconds
    page = percentile([visit.server_ms for visit in measured.alone["feature_page"]], 0.5)
    size, wanted = f"{measured.file_gb:.3g} GB", f"{load.rate:g}"
    verdict = "within" if page < FEATURE_PAGE_MS else "over"
    notes = (
        "Milliseconds of server time; read p99 is client time. first: with cold caches.",
        f"alone: one visitor, {load.alone} pages of each kind; CPU: the server's CPU time per page.",
        f"together: {load.visitors} visitors for {load.seconds:g} s, {per_second:.1f} pages/s of {wanted} requested.",
        f"A feature page alone takes {page:.1f} ms, {verdict} the limit of {FEATURE_PAGE_MS:g} ms.",
        f"{features:,} features, {CONTEXTS_PER_FEATURE} contexts each: {size}, built in {measured.build_s:.0f} s.",
        machine.note(),
    )
    head = ("", "first", "alone CPU", "alone p50", "alone p99", "together p50", "together p99", "read p99", "pages")
    all_figures = {**figures, "requests_per_s": per_second, "file_gb": measured.file_gb, "build_s": measured.build_s}
    return Report("Explorer", head, tuple(rows), all_figures, notes)


async def _measure(address: str, paths: Paths, load: Load, run: SyntheticRun, build_s: float) -> LoadResult:
    first = {kind: (await visit_one_by_one(address, paths, kind, 1))[0] for kind in KINDS}
    alone: dict[Kind, list[Visit]] = {}
    cpu_ms: dict[Kind, float] = {}
    for kind in KINDS:
        before = _server_seconds()
        alone[kind] = await visit_one_by_one(address, paths, kind, load.alone)
        cpu_ms[kind] = 1000 * (_server_seconds() - before) / load.alone
    began = time.perf_counter()
    concurrent = await visit_together(address, paths, visitors=load.visitors, rate=load.rate, seconds=load.seconds)
    seconds, file_gb = time.perf_counter() - began, run.file.stat().st_size / 1e9
    return LoadResult(first, alone, cpu_ms, concurrent, seconds, file_gb, build_s)


def _server_seconds() -> float:
    """CPU time of the explorer, the only child of this process."""
    return sum(times.user + times.system for times in (child.cpu_times() for child in psutil.Process().children()))


def free_port() -> int:
    """A free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _log_tail_in_errors(settings: Settings) -> Iterator[None]:
    """Adds the last line of the server's log to an error, because the log is deleted with the home folder."""
    try:
        yield
    except NotAnswered as error:
        lines = (settings.home / "serve.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        log_tail = f" Its log ends: {lines[-1]}" if lines else ""
        raise NotAnswered(f"{error.fact}{log_tail}", remedy=error.remedy) from error


@contextmanager
def _default_settings() -> Iterator[None]:
    """Removes CROSSDIFF_* variables meanwhile, so that the bench uses nobody's database or worker."""
    saved = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("CROSSDIFF_")}
    try:
        yield
    finally:
        os.environ.update(saved)
