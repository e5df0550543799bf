"""Shows all labels of a feature with their history; people write, withdraw and restore their own."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from fastapi import APIRouter, Cookie, Depends, Form, Path, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import BaseModel

from app.labels.panel import LabelsPanel, labels_panel, with_problem
from app.labels.store import LabelConflict, LabelTarget, restore_label, save_label, withdraw_label
from app.labels.wording import NAME_COOKIE, WordingRefused, author_name, name_from_cookie, name_to_cookie
from app.results.features.feature import one_feature
from app.web.dependencies import LabelsToRead, LabelsToWrite, RunResults
from app.web.templates import address, render, wants_fragment

router = APIRouter(include_in_schema=False)

Index = Annotated[int, Path(ge=0, le=2**31 - 1)]
A_YEAR = 365 * 24 * 3600
SavedName = Annotated[str, Cookie(alias=NAME_COOKIE, max_length=600)]


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
    revision: int = 0
    """The revision that the person saw; 0 for none."""
    action: Literal["save", "withdraw", "restore"] = "save"
    restore: int = 0
    """The revision to bring back."""


def _target(run: str, feature: Index, results: RunResults) -> LabelTarget:
    """The feature in the address. Raises RunNotFound, ResultsMissing, ResultsUnreadable or FeatureNotFound."""
    return LabelTarget(run, feature, one_feature(results, feature).content_hash)


Target = Annotated[LabelTarget, Depends(_target)]


@router.get("/runs/{run}/features/{feature}/labels")
def show_labels(request: Request, target: Target, session: LabelsToRead, name: SavedName = "") -> HTMLResponse:
    """Everybody's labels of a feature."""
    return render(
        request, LabelsPage(target.run, target.feature, labels_panel(session, target, name_from_cookie(name)))
    )


@router.post("/runs/{run}/features/{feature}/labels")
def write_label(
    request: Request, target: Target, session: LabelsToWrite, form: Annotated[LabelForm, Form()]
) -> Response:
    """Save, withdraw or restore one's own label; a refused form comes back as it was typed."""
    try:
        author = author_name(form.author)
        news = _write(session, target, author, form)
    except (WordingRefused, LabelConflict) as error:
        panel = labels_panel(session, target, form.author)
        panel = with_problem(panel, error, text=form.text, note=form.note, author=form.author)
        return render(request, LabelsPage(target.run, target.feature, panel), error.status)
    if wants_fragment(request):
        panel = labels_panel(session, target, author, news=news)
        answer: Response = render(request, LabelsPage(target.run, target.feature, panel))
    else:
        root_path = request.app.state.settings.root_path
        answer = RedirectResponse(address(root_path, f"/runs/{target.run}/features/{target.feature}") + "#labels", 303)
    _remember_name(request, answer, author)
    return answer


def _write(session: LabelsToWrite, target: LabelTarget, author: str, form: LabelForm) -> str:
    """Perform the form's action; returns the confirmation."""
    if form.action == "withdraw":
        withdraw_label(session, target, author, based_on=form.revision)
        return "Your label is withdrawn; the history keeps it."
    if form.action == "restore":
        restored = restore_label(session, target, author, revision=form.restore, based_on=form.revision)
        return f"Revision {restored.restores} is your label again."
    save_label(session, target, author, text=form.text, note=form.note, based_on=form.revision)
    return "Saved."


def _remember_name(request: Request, answer: Response, author: str) -> None:
    """Store the name in a cookie that scripts cannot read."""
    answer.set_cookie(
        NAME_COOKIE,
        name_to_cookie(author),
        max_age=A_YEAR,
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
        path=f"{request.app.state.settings.root_path}/",
    )
