"""A queue of features to label by keyboard: one after the other, in the list's order, without what others wrote."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.database.engine import transaction
from app.errors import ReaderError
from app.labels.store import (
    LabelChange,
    LabelConflict,
    LabelTarget,
    Revision,
    change_label,
    current_labels,
    labelled_by,
    own_label,
)
from app.labels.wording import WordingRefused, author_name
from app.results.evidence.measures_in_words import verdict_in_words
from app.results.features.context_line import ListExample
from app.results.features.feature import Feature, one_feature
from app.results.features.feature_list import FeatureOrder
from app.results.features.query import FeatureQuery
from app.results.features.strongest_lines import strongest_lines
from app.results.owners import Owner
from app.web.dependencies import LabelsEngine, RunRequest, RunView, Visitor, Writers
from app.web.templates import address, render
from app.web.visitor_name import remember_name

router = APIRouter(include_in_schema=False)

LINES = 6
"""Contexts shown."""
LARGEST = 2**31 - 1
"""Integer that the database can hold."""


@dataclass(frozen=True)
class LastLabel:
    """What was saved just before, with what others had written about the same."""

    feature: int
    revision: int
    text: str
    others: tuple[Revision, ...]


@dataclass(frozen=True)
class TriagePage:
    """One feature of the queue."""

    template: ClassVar[str] = "triage.html"
    fragments: ClassVar[dict[str, str]] = {}

    run: str
    query: FeatureQuery
    owners: dict[str, Owner]
    feature: Feature | None
    """None where the queue is empty, or done."""
    claim: str
    lines: tuple[ListExample, ...]
    own: Revision | None
    """The visitor's label of it, if there is one."""
    author: str
    previous: int | None
    next: int | None
    """The features before and after it that the visitor has not labelled; None for none."""
    labelled: int
    total: int
    last: LastLabel | None
    problem: str
    typed: str
    """The text that was refused."""
    meanwhile: str
    """The text that the visitor saved elsewhere meanwhile, if that is why."""


class TriageForm(BaseModel):
    """A label of one feature of the queue."""

    author: str = ""
    text: str = ""
    feature: int = Field(ge=0, le=LARGEST)
    revision: int = Field(default=0, ge=0, le=LARGEST)
    """The revision that the person saw; 0 for none."""
    action: Literal["save", "withdraw"] = "save"


At = Annotated[int | None, Query(ge=0, le=LARGEST)]


@router.get("/runs/{run}/triage")
def show_triage(
    request: Request, view: RunView, engine: LabelsEngine, visitor: Visitor, *, at: At = None, last: At = None
) -> HTMLResponse:
    """The feature `at`, or the first that the visitor has not labelled; `last` was labelled just before."""
    return render(request, _page(view, engine, visitor, at=at, last=last))


@router.post("/runs/{run}/triage")
async def label_in_triage(
    request: Request, view: RunView, writers: Writers, engine: LabelsEngine, form: Annotated[TriageForm, Form()]
) -> Response:
    """Save the label and go on to the next feature, or take the last one back; a refused text comes back as typed."""
    found = await run_in_threadpool(one_feature, view.results, form.feature)
    target = LabelTarget(view.run, form.feature, found.content_hash)
    order = await run_in_threadpool(view.order)  # as it is before the label, which a search may find
    try:
        change = LabelChange(author_name(form.author), form.revision, form.action, form.text)
        saved = await writers.run(lambda session: _change(session, target, change))
    except (WordingRefused, LabelConflict) as error:
        return await run_in_threadpool(_refused, request, view, engine, form, error)
    there = await run_in_threadpool(_next_of, view.run, order, engine, saved.author, feature=form.feature)
    where = {"at": form.feature} if form.action == "withdraw" else {"last": form.feature}
    where |= {} if there is None or form.action == "withdraw" else {"at": there}
    root_path = request.app.state.settings.root_path
    pairs = [*view.query.pairs(), *where.items()]
    answer = RedirectResponse(address(root_path, f"/runs/{view.run}/triage", pairs), 303)
    remember_name(request, answer, saved.author)
    return answer


def _refused(request: Request, view: RunRequest, engine: Engine, form: TriageForm, error: ReaderError) -> HTMLResponse:
    try:
        author = author_name(form.author)
    except WordingRefused:
        author = form.author
    page = _page(view, engine, author, at=form.feature, last=None)
    meanwhile = error.latest.text if isinstance(error, LabelConflict) and error.latest is not None else ""
    page = replace(page, problem=str(error), typed=form.text, meanwhile=meanwhile)
    return render(request, page, error.status)


def _change(session: Session, target: LabelTarget, change: LabelChange) -> Revision:
    """Save or withdraw; a note that was written on the feature's page stays."""
    own = own_label(session, target.run, target.feature, change.author)
    return change_label(session, target, replace(change, note=own.note if own is not None else ""))


def _next_of(run: str, order: FeatureOrder, engine: Engine, author: str, *, feature: int) -> int | None:
    with transaction(engine) as session:
        done = labelled_by(session, run, author)
    return _unlabelled(order, done, feature, 1)


def _page(
    view: RunRequest,
    engine: Engine,
    author: str,
    *,
    at: int | None,
    last: int | None,
) -> TriagePage:
    order = view.order()
    with transaction(engine) as session:
        done = labelled_by(session, view.run, author) if author else set()
        shown = _unlabelled(order, done, None, 1) if at is None else at
        own = own_label(session, view.run, shown, author) if shown is not None and author else None
        told = None if last is None or not author else _last(session, view.run, last, author)
    found = None if shown is None else one_feature(view.results, shown)
    return TriagePage(
        run=view.run,
        query=view.query,
        owners=view.owners,
        feature=found,
        claim="" if found is None else verdict_in_words(found, view.results.sources),
        lines=() if found is None else strongest_lines(view.results, found.feature, most=LINES),
        own=own,
        author=author,
        previous=None if shown is None else _unlabelled(order, done, shown, -1),
        next=None if shown is None else _unlabelled(order, done, shown, 1),
        labelled=sum(one < len(order.places) and order.places[one] >= 0 for one in done),
        total=len(order.features),
        last=told,
        problem="",
        typed="",
        meanwhile="",
    )


def _last(session: Session, run: str, feature: int, author: str) -> LastLabel | None:
    """The visitor's label of a feature with those of others; None where it was taken back."""
    labels = current_labels(session, run, feature)
    own = next((one for one in labels if one.author == author), None)
    others = tuple(one for one in labels if one.author != author)
    return None if own is None else LastLabel(feature, own.revision, own.text, others)


def _unlabelled(order: FeatureOrder, done: set[int], feature: int | None, step: int) -> int | None:
    """The nearest feature of the list in one direction that is not done; from the beginning without a feature."""
    place = -1 if feature is None else order.places[feature] if feature < len(order.places) else -1
    if place < 0 and step < 0:
        return None
    places = range(place + step, len(order.features) if step > 0 else -1, step)
    return next((order.features[at] for at in places if order.features[at] not in done), None)
