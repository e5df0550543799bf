"""Serves runs with everything their overview and method show, and the figures of the method."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field

from app.errors import NotFound
from app.results.evidence.calibration import OUTCOMES, verdict_reliability
from app.results.runs import overview
from app.results.runs.baselines import baselines_of
from app.results.runs.comparison import FindingMatch, compare_runs, found_again
from app.results.runs.findings import findings_of
from app.results.runs.predictability import predictability_of
from app.results.runs.summary import Headline, Run, all_runs, one_run, recipe_of, versions
from app.web.behaviour_sentence import behaviour_sentence
from app.web.dependencies import OtherResults, RunRequest, RunResults, Runs, RunView
from app.web.first_sentence import first_sentence
from app.web.plots import curves, recall, stacked_histogram
from app.web.templates import address, as_json

router = APIRouter(prefix="/api/v1", tags=["runs"])


class RunSummary(BaseModel):
    """One run, as the home page shows it."""

    run: str
    name: str
    status: str = Field(description="running, finished, failed, stopped or unreadable.")
    sources: list[str]
    models: list[str]
    variant: str | None
    features: int | None
    seed: int | None
    progress: dict[str, Any] | None = Field(description="Progress: stage, stages, done, total, rate, measures.")
    headline: dict[str, Any] | None = Field(description="Headline figures of published results.")
    problem: str | None = Field(description="Why it, or its results, cannot be used, and the remedy.")


class RunList(BaseModel):
    """Every run on this machine, the one last worked on first."""

    runs: list[RunSummary]


@router.get("/runs", summary="Every run with its state")
def read_runs(catalog: Runs) -> RunList:
    """Every run on this machine; running ones with their live progress."""
    return RunList(runs=[_summary(run) for run in all_runs(catalog)])


@router.get("/runs/{run}", summary="One run: sources, counts, evaluation, recipe")
def read_run(run: str, results: RunResults, catalog: Runs) -> dict[str, Any]:
    """Everything on the overview and the method of a run."""
    told = predictability_of(results)
    return {
        **_summary(one_run(catalog, run)).model_dump(),
        "file": results.file,
        "first_sentence": first_sentence(told),
        "predictability": as_json(told),
        "sources": as_json(results.sources),
        "counts": as_json(overview.counts(results)),
        "groups": as_json(overview.groups(results)),
        "evaluation": as_json(overview.evaluation(results)),
        "coverage": as_json(overview.coverage(results)),
        "calibration": as_json(overview.calibration(results)),
        "trust": as_json(verdict_reliability(results)),
        "baselines": as_json(baselines_of(results)),
        "norms": as_json(overview.norm_histogram(results)),
        "densities": as_json(overview.density_histogram(results)),
        "training": as_json(overview.training_curves(results)),
        "recipe": recipe_of(results),
        "versions": versions(results),
    }


@router.get("/runs/{run}/findings", summary="What a run reports, the best supported first")
def read_findings(results: RunResults) -> dict[str, Any]:
    """Every finding with its effect, interval, error rate and passages, and what the same rules report of nulls."""
    found = findings_of(results)
    return {
        "sentence": behaviour_sentence(baselines_of(results).pairs),
        "findings": as_json(found.findings),
        "nulls": as_json(found.nulls),
    }


@router.get("/runs/{run}/compare/{other}", summary="Which findings of two runs are the same")
def read_comparison(results: RunResults, others: OtherResults) -> dict[str, Any]:
    """The findings of either run, each with the other's that tells the same, and with the same feature there."""
    found = compare_runs(results, others)
    return {
        "run": found.run,
        "other": found.other,
        "findings": {"run": len(found.forth), "other": len(found.back)},
        "found_again": {"run": found_again(found.forth), "other": found_again(found.back)},
        "forth": [_in_other(match) for match in found.forth],
        "back": [_in_other(match) for match in found.back],
    }


def _matched(match: FindingMatch) -> dict[str, Any] | None:
    """The same feature of the other run, with how far apart predictions are there for the finding's pair of models."""
    one, pair = match.match, (match.finding.base or "", match.finding.source or "")
    if one is None:
        return None
    shown = {name: getattr(one, name) for name in ("feature", "owner", "verdict", "in_common")}
    return {**shown, "divergence_low": one.divergences.get(pair)}


def _in_other(match: FindingMatch) -> dict[str, Any]:
    one = match.finding
    return {
        **{
            name: getattr(one, name)
            for name in ("finding", "kind", "title", "owner", "feature", "effect", "low", "high")
        },
        "again": match.again,
        "holds": match.holds,
        "match": _matched(match),
    }


@router.get("/runs/{run}/plots/{plot}", summary="A figure of the method, for Plotly")
def read_plot(
    request: Request,
    view: RunView,
    plot: Literal["norms", "densities", "training", "spike-ins"],
    scale: Annotated[Literal["linear", "log"], Query()] = "linear",
    measure: Annotated[str, Query(max_length=200)] = "loss",
) -> dict[str, Any]:
    """A figure; colours are named in `meta.colour` of its traces and filled in by the page."""
    looks = {name: owner.look for name, owner in view.owners.items()}
    if plot == "training":
        return _training(view, measure, looks)
    if plot == "spike-ins":
        return _spike_ins(view, measure, looks)
    two = len(view.results.sources) == 2
    if plot == "norms":
        bins = view.catalog.cached(view.run, "norms", overview.norm_histogram)
        names = [source.name for source in view.results.sources]
        title = f"relative norm: 0 only {names[0]}, 1 only {names[1]}" if two else f"norm share of {names[-1]}"
    else:
        bins = view.catalog.cached(view.run, "densities", overview.density_histogram)
        title = "log₁₀ of density"
    path, prefix = f"/runs/{view.run}/features", request.app.state.settings.root_path
    links = {(each.owner, each.low): address(prefix, path, _filter(plot, each, two=two)) for each in bins}
    counted = [(each.low, each.high, each.owner, each.count) for each in bins]
    return stacked_histogram(counted, looks, x_title=title, logarithmic=scale == "log", links=links)


def _filter(plot: str, each: overview.HistogramBin, *, two: bool) -> dict[str, str]:
    """The list's filter for the features of one bar; the list knows norm shares, not relative norms."""
    bound, edge = (
        ("density", _power) if plot == "densities" else ("share", overview.share_of_relative if two else float)
    )
    return {
        "owner": each.owner,
        "life": "alive",
        f"{bound}_min": f"{edge(each.low):.7g}",
        f"{bound}_max": f"{edge(each.high):.7g}",
    }


def _power(exponent: float) -> float:
    return float(10.0**exponent)


def _training(view: RunRequest, measure: str, looks: dict[str, str]) -> dict[str, Any]:
    found = view.catalog.cached(view.run, "curves", overview.training_curves)
    lines = [curve for curve in found if curve.measure.partition(".")[0] == measure]
    if not lines:
        known = ", ".join(sorted({curve.measure.partition(".")[0] for curve in found})) or "none"
        raise NotFound(f"Training did not record {measure!r}.", remedy=f"It recorded: {known}.")
    return curves([(line.measure, line.steps, line.values) for line in lines], looks, y_title=measure.replace("_", " "))


def _spike_ins(view: RunRequest, outcome: str, looks: dict[str, str]) -> dict[str, Any]:
    if outcome not in OUTCOMES:
        raise NotFound(f"Spike-ins are not counted by {outcome!r}.", remedy=f"Outcomes: {', '.join(OUTCOMES)}.")
    lines: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for one in view.catalog.cached(view.run, "verdict_reliability", verdict_reliability).spike_ins:
        share = getattr(one, outcome) / max(one.planted, 1)
        lines.setdefault((one.owner, one.frequency), []).append((one.amplitude, share))
    return recall(lines, looks)


def _summary(run: Run) -> RunSummary:
    plan, headline = run.plan, run.headline
    return RunSummary(
        run=run.run,
        name=plan.name if plan and plan.name else run.run,
        status=run.status,
        sources=list(plan.sources) if plan else [],
        models=list(plan.models) if plan else [],
        variant=(plan.variant or None) if plan else None,
        features=plan.features if plan else None,
        seed=plan.seed if plan else None,
        progress=as_json(run.progress) if run.progress else None,
        headline=_headline(headline) if headline else None,
        problem=run.problem,
    )


def _headline(headline: Headline) -> dict[str, Any]:
    return {
        "created_at": headline.created_at,
        "variance_explained": {
            source.name: value for source, value in zip(headline.sources, headline.variance_explained, strict=True)
        },
        "l0": headline.l0,
        "dead_share": headline.dead_share,
        "owners": {
            count.owner: {name: value for name, value in as_json(count).items() if name != "owner"}
            for count in headline.owners
        },
    }
