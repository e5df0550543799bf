"""Shows a run as a whole: counts by owner, quality of the crosscoder, and the recipe."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import yaml
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app.results.connection import Source
from app.results.evidence.calibration import VerdictReliability, verdict_reliability
from app.results.owners import Owner, owners_of
from app.results.runs import overview
from app.results.runs.baselines import Baselines, baselines_of
from app.results.runs.findings import FindingList, findings_of
from app.results.runs.predictability import Predictability, predictability_of
from app.results.runs.summary import Headline, Run, headline_of, one_run, others_of, recipe_of, versions
from app.web.behaviour_sentence import behaviour_sentence
from app.web.dependencies import RunResults, Runs
from app.web.first_sentence import first_sentence
from app.web.templates import render

router = APIRouter(include_in_schema=False)

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class RunPage:
    """A finished run as a whole."""

    template: ClassVar[str] = "run.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    file: str
    """Name of the results file; its hash is the results' identity."""
    sources: tuple[Source, ...]
    owners: dict[str, Owner]
    headline: Headline
    state: Run
    """What the run is doing now, if anything."""
    recipe_text: str
    versions: dict[str, Any]
    scale: Scale
    norms: list[overview.HistogramBin]
    densities: list[overview.HistogramBin]
    counts: list[overview.VerdictCount]
    groups: list[overview.GroupCount]
    evaluation: list[overview.Evaluation]
    curves: list[tuple[str, list[overview.TrainingCurve]]]
    """Families of training curves: a measure and what it is split into."""
    coverage: list[overview.Coverage]
    calibration: list[overview.CalibrationMeasure]
    reliability: VerdictReliability
    found: FindingList
    others: tuple[str, ...]
    """Other runs of the same comparison."""
    behaviour_sentence: str | None
    """How far apart the sources' predictions are; None where they are not compared."""
    baselines: Baselines
    told: list[Predictability]
    first_sentence: str | None
    """How much the sources tell of each other; None where it is not measured."""


@router.get("/runs/{run}")
def show_run(
    request: Request, run: str, results: RunResults, catalog: Runs, scale: Annotated[Scale, Query()] = "linear"
) -> HTMLResponse:
    """The overview; everything on it is binned and counted once per results file."""
    told = catalog.cached(run, "predictability", predictability_of)
    baselines = catalog.cached(run, "baselines", baselines_of)
    page = RunPage(
        run=run,
        file=results.file,
        sources=results.sources,
        owners=catalog.cached(run, "owners", owners_of),
        headline=catalog.cached(run, "headline", headline_of),
        state=one_run(catalog, run),
        recipe_text=yaml.safe_dump(recipe_of(results), sort_keys=False, allow_unicode=True),
        versions=versions(results),
        scale=scale,
        norms=catalog.cached(run, "norms", overview.norm_histogram),
        densities=catalog.cached(run, "densities", overview.density_histogram),
        counts=catalog.cached(run, "counts", overview.counts),
        groups=catalog.cached(run, "groups", overview.groups),
        evaluation=overview.evaluation(results),
        curves=families(catalog.cached(run, "curves", overview.training_curves)),
        coverage=overview.coverage(results),
        calibration=overview.calibration(results),
        reliability=catalog.cached(run, "verdict_reliability", verdict_reliability),
        found=catalog.cached(run, "findings", findings_of),
        others=others_of(catalog, run),
        behaviour_sentence=behaviour_sentence(baselines.pairs),
        baselines=baselines,
        told=told,
        first_sentence=first_sentence(told),
    )
    return render(request, page)


def families(curves: list[overview.TrainingCurve]) -> list[tuple[str, list[overview.TrainingCurve]]]:
    """Curves gathered by the measure before the dot in their name, the most informative first."""
    gathered: dict[str, list[overview.TrainingCurve]] = {}
    for curve in curves:
        gathered.setdefault(curve.measure.partition(".")[0], []).append(curve)
    order = {"variance_explained": 0, "loss": 1, "l0": 2, "dead": 3, "dead_share": 3, "learning_rate": 9}
    return sorted(gathered.items(), key=lambda family: (order.get(family[0], 5), family[0]))
