"""State, plan and headline measures of every run."""

import datetime
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from app.errors import ReaderError, ResultsMissing, RunNotFound
from app.results.connection import Results, RunCatalog, Source, unreadable
from app.results.folders import (
    LONGEST_NAME,
    Plan,
    Progress,
    folder_names,
    is_run_name,
    plan_of,
    read_plan,
    read_progress,
    shown,
)

log = logging.getLogger("crossdiff.explorer")

Value = TypeVar("Value")


ENOUGH_POWER = 0.8
"""Share of true claims that the rule must support for its silence to say anything."""
ENOUGH_RETURNED = 4
"""Planted concepts that must have come back before that share is judged."""


def misses_much(returned: int, supported: int) -> bool:
    """Whether, of the planted concepts that came back as a source's own features, too few are supported."""
    return returned >= ENOUGH_RETURNED and supported < ENOUGH_POWER * returned


@dataclass(frozen=True)
class OwnerCount:
    """Features of one owner; all counts but `features` are of living ones."""

    owner: str
    alive: int
    features: int
    claimed: int
    """Claimed for it alone."""
    tested: int
    """Of these claims, tested ones."""
    supported: int
    """Of these, supported ones."""
    returned: int = 0
    """Concepts planted in it alone that came back as a feature of it; 0 without calibration."""
    returned_supported: int = 0
    """Of these concepts, those whose claim is supported."""

    @property
    def weak(self) -> bool:
        """Whether the rule misses so many true claims for it that few supported ones say nothing."""
        return misses_much(self.returned, self.returned_supported)


@dataclass(frozen=True)
class Headline:
    """Main figures of a finished run."""

    created_at: datetime.datetime
    sources: tuple[Source, ...]
    variance_explained: tuple[float | None, ...]
    """Per source, on held-out rows, 1 is perfect."""
    l0: float | None
    """Active features per row, on average."""
    dead_share: float
    """Features that never fired, 0 to 1."""
    owners: tuple[OwnerCount, ...]


@dataclass(frozen=True)
class Run:
    """One run folder: its plan, its progress and its main results."""

    run: str
    status: str
    """running, finished, failed, stopped or unreadable."""
    plan: Plan | None
    progress: Progress | None
    headline: Headline | None
    problem: str | None
    """Why the run, or its results, cannot be used, with the remedy."""


@dataclass(frozen=True)
class Comparison:
    """The runs that compare the same sources."""

    sources: tuple[str, ...]
    models: tuple[str, ...]
    runs: tuple[Run, ...]


def all_runs(catalog: RunCatalog) -> list[Run]:
    """Every run on this machine, the one last worked on first; whatever a folder holds, it is one row."""
    found = []
    for name in folder_names(catalog.runs):
        try:
            found.append(one_run(catalog, name) if is_run_name(name) else _misnamed(name))
        except RunNotFound:
            continue  # removed meanwhile
        except Exception as error:  # the other runs are still there
            log.debug("run %r cannot be listed", name, exc_info=error)
            problem = f"Its folder holds something that cannot be shown ({type(error).__name__}). Run its recipe again."
            found.append(Run(name, "unreadable", None, None, None, problem))
    return found


def one_run(catalog: RunCatalog, run: str) -> Run:
    """A run's state; a damaged file is a fact about the run, not an error. Raises RunNotFound."""
    folder = catalog.folder(run)
    problems: list[str] = []

    def known(read: Callable[[], Value]) -> Value | None:
        try:
            return read()
        except (ResultsMissing, RunNotFound):
            return None
        except ReaderError as error:
            problems.append(str(error))
            return None

    progress = known(lambda: read_progress(folder))
    headline = known(lambda: catalog.kept(run, "headline", headline_of))
    plan = known(lambda: catalog.kept(run, "plan", recorded_plan)) if headline else None
    plan = plan or known(lambda: read_plan(folder))
    problem = " ".join(problems) or (progress.error if progress else None)
    status = _status(progress, headline, problems=bool(problems))
    return Run(run, status, plan, progress, headline, problem if status != "running" or problems else None)


def _misnamed(name: str) -> Run:
    fact = f"The folder's name has characters that cannot be shown, or more than {LONGEST_NAME}."
    return Run(
        "".join(each if each.isprintable() else "�" for each in shown(name)),
        "unreadable",
        None,
        None,
        None,
        f"{fact} Give it another name.",
    )


def comparisons(runs: list[Run]) -> list[Comparison]:
    """Runs grouped by the sources they compare, in their given order; those of unknown sources last."""
    gathered: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Run]] = {}
    for run in runs:
        key = (run.plan.sources, run.plan.models) if run.plan else ((), ())
        gathered.setdefault(key, []).append(run)
    found = [Comparison(sources, models, tuple(members)) for (sources, models), members in gathered.items()]
    return sorted(found, key=lambda comparison: not comparison.sources)


def others_of(catalog: RunCatalog, run: str) -> tuple[str, ...]:
    """Other runs with results that compare the same sources, the one last worked on first."""
    for comparison in comparisons(all_runs(catalog)):
        if any(one.run == run for one in comparison.runs):
            return tuple(one.run for one in comparison.runs if one.headline is not None and one.run != run)
    return ()


def headline_of(results: Results) -> Headline:
    """The few figures that the home page shows of a finished run."""
    (created_at,) = results.row("select created_at from run") or (None,)
    measures = {
        (source, measure): value
        for source, measure, value in results.rows(
            "select source, measure, value from evaluation where measure in ('variance_explained', 'l0')"
        )
        if math.isfinite(value)
    }
    owners = results.rows(
        """
        with planted as (
            select s.name as owner, sum(as_claimed)::bigint as returned, sum(supported)::bigint as returned_supported
            from spike_in join source s using (source) group by s.name
        )
        select owner, count(*) filter (where firings > 0), count(*),
            count(*) filter (where firings > 0 and verdict <> ''),
            count(*) filter (where firings > 0 and verdict in ('supported', 'refuted', 'undecided')),
            count(*) filter (where firings > 0 and verdict = 'supported'),
            coalesce(any_value(returned), 0), coalesce(any_value(returned_supported), 0)
        from feature left join planted using (owner) group by owner order by 2 desc, owner
        """
    )
    counts = tuple(OwnerCount(*row) for row in owners)
    return Headline(
        created_at=created_at,
        sources=results.sources,
        variance_explained=tuple(measures.get((source.source, "variance_explained")) for source in results.sources),
        l0=measures.get((None, "l0")),
        dead_share=1 - sum(count.alive for count in counts) / max(results.features, 1),
        owners=counts,
    )


def in_one_line(run: Run) -> str:
    """A run's main results, its progress or its problem."""
    if run.headline is None:
        progress = run.progress if run.status == "running" else None
        return f"{progress.stage}: {progress.message}" if progress else run.problem or ""
    explained = ", ".join(
        f"{source.name} {share:.2f}"
        for source, share in zip(run.headline.sources, run.headline.variance_explained, strict=True)
        if share is not None
    )
    owners = ", ".join(f"{count.alive:,} {count.owner}" for count in run.headline.owners)
    return f"{owners} (variance explained: {explained})"


def recipe_of(results: Results) -> dict[str, Any]:
    """The resolved recipe that made the results."""
    return _object(results, "recipe_json")


def versions(results: Results) -> dict[str, Any]:
    """Versions of what made the results."""
    return _object(results, "versions_json")


def _object(results: Results, column: str) -> dict[str, Any]:
    """The JSON object in a column of the run. Raises ResultsUnreadable."""
    (text,) = results.row(f"select {column} from run") or ("{}",)  # noqa: S608 - one of our two columns
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise unreadable(results.run, results.file, ValueError(f"{column}: {type(error).__name__}")) from None
    return found if isinstance(found, dict) else {}


def recorded_plan(results: Results) -> Plan:
    """The plan in the results' recipe; sources come from the table of sources."""
    plan = plan_of(recipe_of(results))
    return Plan(
        name=plan.name,
        sources=tuple(source.name for source in results.sources),
        models=tuple(source.model for source in results.sources),
        variant=plan.variant,
        features=results.features,
        seed=plan.seed,
    )


def _status(progress: Progress | None, headline: Headline | None, *, problems: bool) -> str:
    if progress is not None and progress.status != "finished":
        # A run that was started again after it had published keeps its results meanwhile.
        return "finished" if headline and progress.status == "stopped" else progress.status
    if headline is not None:
        return "finished"
    return "unreadable" if problems else "stopped"
