"""Data behind the labels panel of a feature's page."""

from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from app.errors import ReaderError
from app.labels.store import LabelConflict, LabelTarget, Revision, current, history
from app.labels.wording import NAME_LIMIT, NOTE_LIMIT, TEXT_LIMIT, WordingRefused


@dataclass(frozen=True)
class LabelsPanel:
    """All authors' labels of one feature, and the form with the visitor's own."""

    run: str
    feature: int
    author: str
    """Name the visitor signs with; empty until one was given."""
    current: list[Revision]
    history: list[Revision]
    """Every revision, newest first."""
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
    def withdrawn(self) -> bool:
        """Whether the author withdrew the label."""
        return self.own is not None and self.own.withdrawn


def labels_panel(session: Session, target: LabelTarget, author: str, *, news: str = "") -> LabelsPanel:
    """Load the panel for this author, whose own label fills the form."""
    return panel_from_revisions(history(session, target.run, target.feature), target, author, news=news)


def panel_from_revisions(revisions: list[Revision], target: LabelTarget, author: str, *, news: str = "") -> LabelsPanel:
    """Build the panel from all revisions of the feature, newest first."""
    own = max((each for each in revisions if each.author == author), key=lambda each: each.revision, default=None)
    return LabelsPanel(
        run=target.run,
        feature=target.feature,
        author=author,
        current=current(revisions),
        history=revisions,
        own=own,
        text=own.text if own else "",
        note=own.note if own else "",
        revision=own.revision if own else 0,
        news=news,
    )


def with_problem(panel: LabelsPanel, error: ReaderError, *, text: str, note: str, author: str) -> LabelsPanel:
    """The panel after a refusal: keeps what was typed; after a conflict, bases the form on the latest revision."""
    if isinstance(error, LabelConflict):
        revision = error.latest.revision if error.latest else 0
        panel = replace(panel, conflict=error.latest, revision=revision)
    elif isinstance(error, WordingRefused):
        panel = replace(panel, field=error.field)
    return replace(panel, problem=str(error), text=text, note=note, author=author)
