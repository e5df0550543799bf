"""Serves a feature's labels, and stores one's own on top of the revision that was seen."""

import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from app.labels.store import (
    LabelConflict,
    LabelTarget,
    Revision,
    current_labels,
    history,
    restore_label,
    save_label,
    withdraw_label,
)
from app.labels.wording import author_name
from app.results.features.feature import one_feature
from app.web.dependencies import LabelsToRead, LabelsToWrite, RunResults

router = APIRouter(prefix="/api/v1/runs/{run}/features/{feature}", tags=["labels"])

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]


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
    labels: list[LabelRevision] = Field(description="Every author's current label.")
    history: list[LabelRevision] = Field(description="Every revision, newest first.")


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
    revision: int = Field(default=0, ge=0, description="The author's revision that this one is based on; 0 for none.")
    action: Literal["save", "withdraw", "restore"] = "save"
    restore: int = Field(default=0, description="The revision to bring back, for `restore`.")


def _target(run: str, feature: Index, results: RunResults) -> LabelTarget:
    return LabelTarget(run, feature, one_feature(results, feature).content_hash)


Target = Annotated[LabelTarget, Depends(_target)]


@router.get("/labels", summary="Everybody's labels of a feature, with their history")
def read_labels(target: Target, session: LabelsToRead) -> Labels:
    """Current labels and every revision."""
    return Labels(
        run=target.run,
        feature=target.feature,
        content_hash=target.content_hash,
        labels=[_revision(one) for one in current_labels(session, target.run, target.feature)],
        history=[_revision(one) for one in history(session, target.run, target.feature)],
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
def write_label(target: Target, session: LabelsToWrite, new: NewLabel) -> LabelRevision | Response:
    """Add a revision; nothing is ever overwritten."""
    author = author_name(new.author)
    try:
        if new.action == "withdraw":
            return _revision(withdraw_label(session, target, author, based_on=new.revision))
        if new.action == "restore":
            return _revision(restore_label(session, target, author, revision=new.restore, based_on=new.revision))
        return _revision(save_label(session, target, author, text=new.text, note=new.note, based_on=new.revision))
    except LabelConflict as conflict:
        error = Refusal(status=conflict.status, title=conflict.title, message=conflict.fact, remedy=conflict.remedy)
        answer = Conflict(error=error, latest=_revision(conflict.latest) if conflict.latest else None)
        return JSONResponse(answer.model_dump(mode="json"), conflict.status)


def _revision(one: Revision) -> LabelRevision:
    return LabelRevision.model_validate(one.__dict__)
