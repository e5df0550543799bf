"""Data behind the labels panel of a feature's page."""

from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from app.errors import ReaderError
from app.labels.store import (
    LabelConflict,
    LabelOfSame,
    LabelTarget,
    Revision,
    count_current,
    count_revisions,
    current_labels,
    history,
    labels_of_same,
    own_label,
)
from app.labels.wording import NAME_LIMIT, NOTE_LIMIT, TEXT_LIMIT, WordingRefused

PER_PAGE = 20
"""Revisions on a page of the history."""
SHOWN_LABELS = 50
"""Current labels that are shown; more are counted."""


@dataclass(frozen=True)
class LabelsPanel:
    """All authors' labels of one feature, and the form with the visitor's own."""

    run: str
    feature: int
    author: str
    """Name the visitor signs with; empty until one was given."""
    current: list[Revision]
    """Current labels, as many as are shown."""
    authors: int
    """Current labels that there are."""
    same: list[LabelOfSame]
    """Current labels of the same feature in other runs, as many as are shown."""
    history: list[Revision]
    """One page of the revisions, newest first."""
    page: int
    """From 1."""
    revisions: int
    """Revisions that there are."""
    own: Revision | None
    """The author's newest revision, also when it is withdrawn."""
    text: str
    """Content of the form's label field."""
    note: str
    revision: int
    """Revision that the form was opened on; 0 for none."""
    problem: str = ""
    """Why nothing was saved."""
    field: str = ""
    """Invalid field: `author`, `text` or `note`; empty for none."""
    conflict: Revision | None = None
    """The newer revision, saved after the form was opened."""
    news: str = ""
    """Confirmation of the last action."""
    name_limit: int = NAME_LIMIT
    text_limit: int = TEXT_LIMIT
    note_limit: int = NOTE_LIMIT

    @property
    def pages(self) -> int:
        """Pages of the history."""
        return max(-(-self.revisions // PER_PAGE), 1)

    @property
    def withdrawn(self) -> bool:
        """Whether the author withdrew the label."""
        return self.own is not None and self.own.withdrawn


def labels_panel(session: Session, target: LabelTarget, author: str, *, page: int = 1, news: str = "") -> LabelsPanel:
    """Load the panel for this author, whose own label fills the form, with one page of the history."""
    run, feature = target.run, target.feature
    own = own_label(session, run, feature, author) if author else None
    revisions = count_revisions(session, run, feature)
    page = min(page, max(-(-revisions // PER_PAGE), 1))
    return LabelsPanel(
        run=run,
        feature=feature,
        author=author,
        current=current_labels(session, run, feature, limit=SHOWN_LABELS),
        authors=count_current(session, run, feature),
        same=labels_of_same(session, target, limit=SHOWN_LABELS),
        history=history(session, run, feature, limit=PER_PAGE, offset=(page - 1) * PER_PAGE) if revisions else [],
        page=page,
        revisions=revisions,
        own=own,
        text=own.text if own else "",
        note=own.note if own else "",
        revision=own.revision if own else 0,
        news=news,
    )


def empty_panel(session: Session, target: LabelTarget, author: str) -> LabelsPanel:
    """The panel of a feature that nobody has written about in this run."""
    return LabelsPanel(
        run=target.run,
        feature=target.feature,
        author=author,
        current=[],
        authors=0,
        same=labels_of_same(session, target, limit=SHOWN_LABELS),
        history=[],
        page=1,
        revisions=0,
        own=None,
        text="",
        note="",
        revision=0,
    )


def with_problem(panel: LabelsPanel, error: ReaderError, *, text: str, note: str, author: str) -> LabelsPanel:
    """The panel after a refusal: keeps what was typed; after a conflict, bases the form on the latest revision."""
    if isinstance(error, LabelConflict):
        revision = error.latest.revision if error.latest else 0
        panel = replace(panel, conflict=error.latest, revision=revision)
    elif isinstance(error, WordingRefused):
        panel = replace(panel, field=error.field)
    return replace(panel, problem=str(error), text=text, note=note, author=author)
