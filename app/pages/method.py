"""Shows how a run was made and how good it is: training, quality of the crosscoder, text, and the recipe."""

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
from app.results.runs.predictability import Predictability, predictability_of
from app.results.runs.summary import Headline, headline_of, recipe_of, versions
from app.web.dependencies import RunResults, Runs
from app.web.templates import render

router = APIRouter(include_in_schema=False)

Scale = Literal["linear", "log"]


@dataclass(frozen=True)
class MethodPage:
    """How a finished run was made."""

    template: ClassVar[str] = "method.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    file: str
    """Name of the results file; its hash is the results' identity."""
    sources: tuple[Source, ...]
    owners: dict[str, Owner]
    headline: Headline
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
    baselines: Baselines
    told: list[Predictability]


@router.get("/runs/{run}/method")
def show_method(
    request: Request, run: str, results: RunResults, catalog: Runs, scale: Annotated[Scale, Query()] = "linear"
) -> HTMLResponse:
    """The method; everything on it is binned and counted once per results file."""
    page = MethodPage(
        run=run,
        file=results.file,
        sources=results.sources,
        owners=catalog.cached(run, "owners", owners_of),
        headline=catalog.cached(run, "headline", headline_of),
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
        baselines=catalog.cached(run, "baselines", baselines_of),
        told=catalog.cached(run, "predictability", predictability_of),
    )
    return render(request, page)


def families(curves: list[overview.TrainingCurve]) -> list[tuple[str, list[overview.TrainingCurve]]]:
    """Curves gathered by the measure before the dot in their name, the most informative first."""
    gathered: dict[str, list[overview.TrainingCurve]] = {}
    for curve in curves:
        gathered.setdefault(curve.measure.partition(".")[0], []).append(curve)
    order = {"variance_explained": 0, "loss": 1, "l0": 2, "dead": 3, "dead_share": 3, "learning_rate": 9}
    return sorted(gathered.items(), key=lambda family: (order.get(family[0], 5), family[0]))
