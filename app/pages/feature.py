"""One feature: whose it is and how well that is known, the text it fires on, and what it does."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from fastapi import APIRouter, Cookie, Depends, Path, Query, Request
from fastapi.responses import HTMLResponse

from app.errors import BadQuery
from app.generations.form import SteerForm, panel_form
from app.labels.panel import LabelsPanel
from app.labels.store import LabelTarget
from app.labels.wording import NAME_COOKIE, name_from_cookie
from app.results.connection import Source
from app.results.evidence.agreement import Agreement
from app.results.evidence.criteria import Test
from app.results.evidence.feature_detail import dossier_of
from app.results.evidence.findings import Finding, claim_in_words, coherence_in_words, findings, verdict_in_words
from app.results.features.contexts import BUCKETS, Bucket, Window, buckets_of, check_tokens, kept_of, windows_of
from app.results.features.corpus_breakdown import CorpusBreakdown
from app.results.features.feature import Bar, Feature, InSource, Logits, Neighbour, strongest
from app.results.features.feature_list import Neighbours, neighbours
from app.results.features.query import FeatureQuery
from app.results.owners import Owner, owner_of
from app.web.dependencies import RunView
from app.web.templates import render

router = APIRouter(include_in_schema=False)

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]
SavedName = Annotated[str, Cookie(alias=NAME_COOKIE, max_length=600)]


@dataclass(frozen=True)
class Reading:
    """How the contexts are read: the part of the address that belongs to them."""

    bucket: Annotated[str, Query(max_length=20)] = "top"
    corpus_part: Annotated[str, Query(max_length=200)] = ""
    """Show contexts of this part of the corpus alone."""
    tokens: Annotated[str, Query(max_length=200)] = "both"
    """A source's name, or `both` for all of them."""

    def pairs(self, listing: FeatureQuery, **changes: str) -> list[tuple[str, str]]:
        """The page's query with changes, defaults left out; the list's state goes along."""
        changed = dataclasses.replace(self, **changes)
        own = [(name, value) for name, value in changed.__dict__.items() if value != getattr(Reading, name)]
        return own + listing.pairs()

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
    claim: Finding | None
    """Where its claim comes from; None without one."""
    tests: list[Test]
    """Of its claim."""
    findings: list[Finding]
    """What is known instead where there are none."""
    agreement: Agreement | None
    """With its strongest twin."""
    ground: CorpusBreakdown
    coherence: str | None
    bars: list[Bar]
    logits: list[Logits]
    strongest_logit: float
    alike: list[Neighbour]
    labels: dict[int, str]
    """Labels of the features alike."""
    reading: Reading
    buckets: list[Bucket]
    corpora: list[str]
    windows: list[Window]
    listing: FeatureQuery
    place: Neighbours
    """Where the feature stands in the list that the reader came from."""
    labels_panel: LabelsPanel | None
    """None while labels cannot be read."""
    steer_form: SteerForm


@router.get("/runs/{run}/features/{feature}")
def show_feature(
    request: Request, feature: Index, view: RunView, reading: Annotated[Reading, Depends()], name: SavedName = ""
) -> HTMLResponse:
    """The page of a feature."""
    results, run = view.results, view.run
    reading.check(results.sources)
    found = dossier_of(results, feature, view.usual)
    one, inside, alike = found.feature, found.inside, found.alike
    kept = kept_of(results, feature)
    place = LabelTarget(run, feature, one.content_hash)
    panel, names = view.labels.around(place, name_from_cookie(name), [each.feature for each in alike])
    page = FeaturePage(
        run=run,
        file=results.file,
        sources=results.sources,
        owners=view.owners,
        owner=owner_of(one.owner, results.sources),
        feature=one,
        verdict=verdict_in_words(one, results.sources, found.tests, alike),
        label=names.get(feature),
        inside=inside,
        claim=claim_in_words(one, inside),
        tests=found.tests,
        findings=[] if found.tests else findings(inside, alike),
        agreement=found.agreement,
        ground=found.ground,
        coherence=coherence_in_words(one),
        bars=found.bars,
        logits=found.logits,
        strongest_logit=strongest(found.logits),
        alike=alike,
        labels=names,
        reading=reading,
        buckets=buckets_of(kept, reading.corpus_part),
        corpora=sorted({each.corpus for each in kept}),
        windows=windows_of(results, feature, reading.bucket, reading.corpus_part, scale=one.max_activation),
        listing=view.listing,
        place=neighbours(view.order(), feature),
        labels_panel=panel,
        steer_form=panel_form(results, one, inside),
    )
    return render(request, page)
