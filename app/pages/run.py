"""Shows what a run found: its findings, how far they can be trusted, and where to look on."""

from dataclasses import dataclass
from typing import ClassVar

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.results.connection import Results, Source
from app.results.evidence.calibration import VerdictReliability, verdict_reliability
from app.results.evidence.claim_map import ClaimMap, claim_map
from app.results.features.context_line import ListExample, examples_of
from app.results.owners import Owner, owners_of
from app.results.runs.baselines import baselines_of
from app.results.runs.findings import FindingList, findings_of
from app.results.runs.overview import TextPart, text_parts
from app.results.runs.predictability import predictability_of
from app.results.runs.summary import Headline, Run, headline_of, one_run, others_of
from app.web.behaviour_sentence import behaviour_sentence
from app.web.dependencies import CurrentLabels, RunResults, Runs
from app.web.first_sentence import first_sentence
from app.web.headline_sentence import headline_sentence
from app.web.templates import render

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class RunPage:
    """What a finished run found."""

    template: ClassVar[str] = "run.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    sources: tuple[Source, ...]
    owners: dict[str, Owner]
    headline: Headline
    headline_sentence: str
    state: Run
    """What the run is doing now, if anything."""
    reliability: VerdictReliability
    found: FindingList
    others: tuple[str, ...]
    """Other runs of the same comparison."""
    examples: dict[int, ListExample]
    """Promoted tokens and a line of text of every feature that a finding is about."""
    labels: dict[int, str]
    """Of these features."""
    behaviour_sentence: str | None
    """How far apart the sources' predictions are; None where they are not compared."""
    first_sentence: str | None
    """How much the sources tell of each other; None where it is not measured."""
    claim_maps: tuple[ClaimMap, ...]
    text_parts: dict[str, tuple[TextPart, ...]]


@router.get("/runs/{run}")
def show_run(request: Request, run: str, results: RunResults, catalog: Runs, labels: CurrentLabels) -> HTMLResponse:
    """The overview; everything on it is read once per results file but for labels and the run's state."""
    found = catalog.cached(run, "findings", findings_of)
    features = [one.feature for one in found.findings if one.feature is not None]
    headline = catalog.cached(run, "headline", headline_of)
    reliability = catalog.cached(run, "verdict_reliability", verdict_reliability)
    names = [source.name for source in results.sources]
    page = RunPage(
        run=run,
        sources=results.sources,
        owners=catalog.cached(run, "owners", owners_of),
        headline=headline,
        headline_sentence=headline_sentence(names, headline.owners, found.findings, reliability),
        state=one_run(catalog, run),
        reliability=reliability,
        found=found,
        others=others_of(catalog, run),
        examples=catalog.cached(run, "finding_examples", _examples),
        labels=labels.latest(run, features),
        behaviour_sentence=behaviour_sentence(catalog.cached(run, "baselines", baselines_of).pairs),
        first_sentence=first_sentence(catalog.cached(run, "predictability", predictability_of)),
        claim_maps=catalog.cached(run, "claim_maps", claim_map),
        text_parts=catalog.cached(run, "text_parts", text_parts),
    )
    return render(request, page)


def _examples(results: Results) -> dict[int, ListExample]:
    """Of every feature that a finding is about."""
    features = {one.feature for one in findings_of(results).findings if one.feature is not None}
    return examples_of(results, sorted(features), (), {})
