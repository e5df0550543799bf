"""Shows all labels of a feature with their history; people write, withdraw and restore their own."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Depends, Form, Path, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from app.database.engine import transaction
from app.errors import ReaderError
from app.labels.panel import LabelsPanel, labels_panel, with_problem
from app.labels.store import LabelChange, LabelConflict, LabelTarget, Revision, change_label
from app.labels.wording import WordingRefused, author_name
from app.results.features.feature import one_feature
from app.web.dependencies import LabelsEngine, RunResults, Visitor, Writers
from app.web.templates import address, render, wants_fragment
from app.web.visitor_name import remember_name

router = APIRouter(include_in_schema=False)

LARGEST = 2**31 - 1
"""Integer that the database can hold."""
Index = Annotated[int, Path(ge=0, le=LARGEST)]


@dataclass(frozen=True)
class LabelsPage:
    """A feature's labels by themselves; HTMX asks for the panel alone."""

    template: ClassVar[str] = "labels.html"
    fragments: ClassVar[dict[str, str]] = {"labels": "_labels.html"}

    run: str
    feature: int
    labels_panel: LabelsPanel


class LabelForm(BaseModel):
    """Fields of the form; limits are checked on saving, so that a refused text can be shown again."""

    author: str = ""
    text: str = ""
    note: str = ""
    revision: int = Field(default=0, ge=0, le=LARGEST)
    """The revision that the person saw; 0 for none."""
    action: Literal["save", "withdraw", "restore"] = "save"
    restore: int = Field(default=0, ge=0, le=LARGEST)
    """The revision to bring back."""


def _target(run: str, feature: Index, results: RunResults) -> LabelTarget:
    """The feature in the address. Raises RunNotFound, ResultsMissing, ResultsUnreadable or FeatureNotFound."""
    return LabelTarget(run, feature, one_feature(results, feature).content_hash)


Target = Annotated[LabelTarget, Depends(_target)]


@router.get("/runs/{run}/features/{feature}/labels")
def show_labels(
    request: Request,
    target: Target,
    engine: LabelsEngine,
    visitor: Visitor,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
) -> HTMLResponse:
    """Everybody's labels of a feature, with one page of their history."""
    with transaction(engine) as session:
        panel = labels_panel(session, target, visitor, page=page)
    return render(request, LabelsPage(target.run, target.feature, panel))


@router.post("/runs/{run}/features/{feature}/labels")
async def write_label(
    request: Request, target: Target, writers: Writers, engine: LabelsEngine, form: Annotated[LabelForm, Form()]
) -> Response:
    """Save, withdraw or restore one's own label; a refused form comes back as it was typed."""
    try:
        change = LabelChange(author_name(form.author), form.revision, form.action, form.text, form.note, form.restore)
        saved = await writers.run(lambda session: change_label(session, target, change))
    except (WordingRefused, LabelConflict) as error:
        return await run_in_threadpool(_refused, request, target, engine, form, error)
    return await run_in_threadpool(_saved, request, target, engine, form, saved)


def _refused(
    request: Request, target: LabelTarget, engine: LabelsEngine, form: LabelForm, error: ReaderError
) -> Response:
    """The form as it was typed, with what is wrong."""
    known = "" if isinstance(error, WordingRefused) and error.field == "author" else form.author
    with transaction(engine) as session:
        panel = labels_panel(session, target, known)
    panel = with_problem(panel, error, text=form.text, note=form.note, author=form.author)
    return render(request, LabelsPage(target.run, target.feature, panel), error.status)


def _saved(request: Request, target: LabelTarget, engine: LabelsEngine, form: LabelForm, saved: Revision) -> Response:
    """The panel with what is there now, or the way back to the feature."""
    if wants_fragment(request):
        news = {
            "save": "Saved.",
            "withdraw": "Your label is withdrawn; the history keeps it.",
            "restore": f"Revision {saved.restores} is your label again.",
        }[form.action]
        with transaction(engine) as session:
            panel = labels_panel(session, target, saved.author, news=news)
        answer: Response = render(request, LabelsPage(target.run, target.feature, panel))
    else:
        root_path = request.app.state.settings.root_path
        answer = RedirectResponse(address(root_path, f"/runs/{target.run}/features/{target.feature}") + "#labels", 303)
    remember_name(request, answer, saved.author)
    return answer
