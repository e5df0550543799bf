"""Serves a feature's labels, and stores one's own on top of the revision that was seen."""

import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from app.database.engine import transaction
from app.labels.store import (
    LabelChange,
    LabelConflict,
    LabelTarget,
    Revision,
    change_label,
    count_current,
    count_revisions,
    current_labels,
    history,
)
from app.labels.wording import author_name
from app.results.features.feature import one_feature
from app.web.dependencies import LabelsEngine, RunResults, Writers

router = APIRouter(prefix="/api/v1/runs/{run}/features/{feature}", tags=["labels"])

PER_PAGE = 100
"""Revisions on a page of the history, and current labels at most."""
LARGEST = 2**31 - 1
"""Integer that the database can hold."""
Index = Annotated[int, Path(ge=0, le=LARGEST)]


class LabelRevision(BaseModel):
    """One state of one author's label."""

    author: str
    revision: int = Field(description="1 for the author's first, then counting up.")
    text: str
    note: str
    withdrawn: bool
    restores: int | None = Field(description="The revision that it brought back, if it did.")
    created_at: datetime.datetime


class Labels(BaseModel):
    """A feature's labels."""

    run: str
    feature: int
    content_hash: str = Field(description="Of the feature's decoder directions; survives re-indexing.")
    labels: list[LabelRevision] = Field(description="Authors' current labels, by author; 100 at most.")
    authors: int = Field(description="Authors with a current label.")
    history: list[LabelRevision] = Field(description="One page of the revisions, newest first.")
    revisions: int = Field(description="Revisions of all authors.")
    page: int
    pages: int = Field(description="Pages of the history.")


class Refusal(BaseModel):
    """A refusal, in the same shape as every error."""

    status: int
    title: str
    message: str
    remedy: str


class Conflict(BaseModel):
    """The author saved another revision meanwhile; nothing was overwritten."""

    error: Refusal
    latest: LabelRevision | None = Field(description="What was saved meanwhile; null when there is no revision at all.")


class NewLabel(BaseModel):
    """A revision to add."""

    author: str
    text: str = ""
    note: str = ""
    revision: int = Field(
        default=0, ge=0, le=LARGEST, description="The author's revision that this one is based on; 0 for none."
    )
    action: Literal["save", "withdraw", "restore"] = "save"
    restore: int = Field(default=0, ge=0, le=LARGEST, description="The revision to bring back, for `restore`.")


def _target(run: str, feature: Index, results: RunResults) -> LabelTarget:
    return LabelTarget(run, feature, one_feature(results, feature).content_hash)


Target = Annotated[LabelTarget, Depends(_target)]


@router.get("/labels", summary="Everybody's labels of a feature, with their history")
def read_labels(target: Target, engine: LabelsEngine, page: Annotated[int, Query(ge=1, le=1_000_000)] = 1) -> Labels:
    """Current labels, and the history in pages of a hundred revisions."""
    run, feature = target.run, target.feature
    with transaction(engine) as session:
        revisions = count_revisions(session, run, feature)
        current = current_labels(session, run, feature, limit=PER_PAGE)
        authors = count_current(session, run, feature)
        past = history(session, run, feature, limit=PER_PAGE, offset=(page - 1) * PER_PAGE)
    return Labels(
        run=run,
        feature=feature,
        content_hash=target.content_hash,
        labels=[_revision(one) for one in current],
        authors=authors,
        history=[_revision(one) for one in past],
        revisions=revisions,
        page=page,
        pages=max(-(-revisions // PER_PAGE), 1),
    )


@router.post(
    "/labels",
    summary="Save, withdraw or restore one's own label",
    status_code=201,
    response_model=LabelRevision,
    responses={
        409: {
            "model": Conflict,
            "description": "The author's newest revision is not the one given as `revision`. Nothing was saved; "
            "`latest` is that newest one. Save again with its number to put the new text after it.",
        }
    },
)
async def write_label(target: Target, writers: Writers, new: NewLabel) -> LabelRevision | Response:
    """Add a revision; nothing is ever overwritten."""
    change = LabelChange(author_name(new.author), new.revision, new.action, new.text, new.note, new.restore)
    try:
        return _revision(await writers.run(lambda session: change_label(session, target, change)))
    except LabelConflict as conflict:
        error = Refusal(status=conflict.status, title=conflict.title, message=conflict.fact, remedy=conflict.remedy)
        answer = Conflict(error=error, latest=_revision(conflict.latest) if conflict.latest else None)
        return JSONResponse(answer.model_dump(mode="json"), conflict.status)


def _revision(one: Revision) -> LabelRevision:
    return LabelRevision.model_validate(one.__dict__)
