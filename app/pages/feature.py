"""Shows one feature: owner and evidence, the contexts it fires on, and its effects on the logits."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.errors import BadQuery
from app.generations.form import SteerForm, panel_form
from app.labels.panel import LabelsPanel
from app.labels.store import LabelTarget
from app.results.connection import Source
from app.results.evidence.agreement import Agreement
from app.results.evidence.calibration import verdict_reliability
from app.results.evidence.criteria import CriterionResult
from app.results.evidence.feature_detail import feature_detail
from app.results.evidence.measures_in_words import (
    WordedMeasure,
    claim_in_words,
    coherence_in_words,
    measures_in_words,
    verdict_in_words,
)
from app.results.features.contexts import (
    BUCKETS,
    KEPT_AT_MOST,
    Bucket,
    Window,
    bucket_counts,
    check_tokens,
    kept_counts,
    kept_windows,
)
from app.results.features.corpus_breakdown import CorpusBreakdown
from app.results.features.feature import (
    ActivationBin,
    Feature,
    InSource,
    LayerProbe,
    Logits,
    Neighbour,
    PairDivergence,
    SourceProbe,
    feature_of_id,
    strongest,
)
from app.results.features.feature_list import ListPosition
from app.results.features.query import FeatureQuery
from app.results.owners import Owner, owner_of
from app.web.dependencies import RunRequest, RunView, Visitor
from app.web.templates import address, render

router = APIRouter(include_in_schema=False)

FEW = 8
"""Contexts that are shown before all are asked for."""

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]


@dataclass(frozen=True)
class ContextSelection:
    """Query parameters that select the contexts shown."""

    bucket: Annotated[str, Query(max_length=20)] = "top"
    corpus_part: Annotated[str, Query(max_length=200)] = ""
    """Show contexts of this part of the corpus alone."""
    tokens: Annotated[str, Query(max_length=200)] = "both"
    """A source's name, or `both` for all of them."""
    contexts: Annotated[str, Query(pattern="^(few|all)$")] = "few"
    """Whether the first FEW contexts are shown, or all."""

    def pairs(self, query: FeatureQuery, **changes: str) -> list[tuple[str, str]]:
        """Query pairs with changes, defaults left out, followed by those of the list."""
        changed = dataclasses.replace(self, **changes)
        own = [(name, value) for name, value in changed.__dict__.items() if value != getattr(ContextSelection, name)]
        return own + query.pairs()

    def check(self, sources: Sequence[Source]) -> None:
        """Raises BadQuery for contexts or tokens that the run does not have."""
        if self.bucket not in BUCKETS:
            raise BadQuery(f"There are no {self.bucket!r} contexts.", remedy=f"Kinds: {', '.join(BUCKETS)}.")
        check_tokens(self.tokens, sources)


@dataclass(frozen=True)
class FeaturePage:
    """One feature; HTMX asks for its contexts alone."""

    template: ClassVar[str] = "feature.html"
    fragments: ClassVar[dict[str, str]] = {"contexts": "_feature_contexts.html"}

    run: str
    file: str
    sources: tuple[Source, ...]
    owners: dict[str, Owner]
    owner: Owner
    feature: Feature
    verdict: str
    label: str | None
    inside: list[InSource]
    claim: WordedMeasure | None
    """The norm share that makes its claim; None without one."""
    caution: str | None
    """Why an undecided claim of its owner says little; None if it says something."""
    probes: list[SourceProbe]
    """How well each source tells where it fires."""
    layers: list[LayerProbe]
    """The same of other layers of the others' models."""
    divergences: list[PairDivergence]
    """How much more pairs of models differ where it fires."""
    tests: list[CriterionResult]
    """Of its claim."""
    measures: list[WordedMeasure]
    """Measures that are shown where there are no results of a claim."""
    agreement: Agreement | None
    """With its strongest twin."""
    corpus_breakdown: CorpusBreakdown
    coherence: str | None
    bars: list[ActivationBin]
    logits: list[Logits]
    strongest_logit: float
    neighbours: list[Neighbour]
    labels: dict[int, str]
    """Labels of the neighbours."""
    selection: ContextSelection
    buckets: list[Bucket]
    corpora: list[str]
    windows: list[Window]
    few: int
    """Contexts that are shown before all are asked for."""
    query: FeatureQuery
    list_position: ListPosition
    """Its position in the list that the reader came from."""
    labels_panel: LabelsPanel | None
    """None while labels cannot be read."""
    steer_form: SteerForm


@router.get("/runs/{run}/features/id/{content_hash}")
def show_feature_of_id(
    request: Request, content_hash: Annotated[str, Path(max_length=128)], view: RunView
) -> RedirectResponse:
    """Lead from an address that survives another training to the feature's page."""
    feature = feature_of_id(view.results, content_hash)
    return RedirectResponse(address(request.app.state.settings.root_path, f"/runs/{view.run}/features/{feature}"), 302)


@router.get("/runs/{run}/features/{feature}")
def show_feature(
    request: Request,
    feature: Index,
    view: RunView,
    selection: Annotated[ContextSelection, Depends()],
    visitor: Visitor,
) -> HTMLResponse:
    """The page of a feature."""
    results, run = view.results, view.run
    tag = view.tag(request)
    selection.check(results.sources)
    found = feature_detail(results, feature, view.corpus_shares)
    one, inside, neighbours = found.feature, found.inside, found.neighbours
    kept = kept_counts(results, feature)
    target = LabelTarget(run, feature, one.content_hash)
    panel, names = view.labels.panel_and_names(target, visitor, [each.feature for each in neighbours])
    page = FeaturePage(
        run=run,
        file=results.file,
        sources=results.sources,
        owners=view.owners,
        owner=owner_of(one.owner, results.sources),
        feature=one,
        verdict=verdict_in_words(one, results.sources, found.tests, neighbours),
        label=names.get(feature),
        inside=inside,
        claim=claim_in_words(one, inside),
        caution=_caution(view, one),
        probes=found.probes,
        layers=found.layers,
        divergences=found.divergences,
        tests=found.tests,
        measures=[] if found.tests else measures_in_words(inside, neighbours),
        agreement=found.agreement,
        corpus_breakdown=found.corpus_breakdown,
        coherence=coherence_in_words(one),
        bars=found.bars,
        logits=found.logits,
        strongest_logit=strongest(found.logits),
        neighbours=neighbours,
        labels=names,
        selection=selection,
        buckets=bucket_counts(kept, selection.corpus_part),
        corpora=sorted({each.corpus for each in kept}),
        windows=kept_windows(
            results,
            feature,
            selection.bucket,
            selection.corpus_part,
            scale=one.max_activation,
            most=KEPT_AT_MOST if selection.contexts == "all" else FEW,
        ),
        few=FEW,
        query=view.query,
        list_position=view.order().position(feature),
        labels_panel=panel,
        steer_form=panel_form(results, one, inside),
    )
    # Labels that could not be read just now may be read the next time.
    return render(request, page, tag=tag if panel else "")


def _caution(view: RunRequest, feature: Feature) -> str | None:
    if feature.verdict != "undecided":
        return None
    reliability = view.catalog.cached(view.run, "verdict_reliability", verdict_reliability)
    return next((one.caution for one in reliability.owners if one.owner == feature.owner), None)
