"""Panel: what the labels part of a feature's page shows."""

from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from app.errors import ReaderError
from app.labels.store import LabelConflict, Place, Revision, current, history
from app.labels.wording import NAME_LIMIT, NOTE_LIMIT, TEXT_LIMIT, WordingRefused


@dataclass(frozen=True)
class LabelsPanel:
    """Everybody's labels of one feature, and the form for one's own."""

    run: str
    feature: int
    author: str
    """Who signs; empty until a name was given."""
    current: list[Revision]
    history: list[Revision]
    """Every revision, newest first."""
    own: Revision | None
    """The author's newest revision, also when it is withdrawn."""
    text: str
    """What stands in the form."""
    note: str
    revision: int
    """What the form was based on; 0 for nothing."""
    problem: str = ""
    """Why nothing was saved."""
    field: str = ""
    """The field that is to blame: `author`, `text` or `note`."""
    conflict: Revision | None = None
    """What was saved elsewhere meanwhile."""
    news: str = ""
    """What was just done."""
    name_limit: int = NAME_LIMIT
    text_limit: int = TEXT_LIMIT
    note_limit: int = NOTE_LIMIT

    @property
    def withdrawn(self) -> bool:
        """Whether the author took the label back."""
        return self.own is not None and self.own.withdrawn


def labels_panel(session: Session, place: Place, author: str, *, news: str = "") -> LabelsPanel:
    """The panel as this author finds it, with the own label in the form."""
    return panel_of(history(session, place.run, place.feature), place, author, news=news)


def panel_of(revisions: list[Revision], place: Place, author: str, *, news: str = "") -> LabelsPanel:
    """The same from all revisions of the feature, newest first."""
    own = max((each for each in revisions if each.author == author), key=lambda each: each.revision, default=None)
    return LabelsPanel(
        run=place.run,
        feature=place.feature,
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
    """The panel after a refusal: what was typed stays in the form, and after a conflict the form has caught up."""
    if isinstance(error, LabelConflict):
        revision = error.latest.revision if error.latest else 0
        panel = replace(panel, conflict=error.latest, revision=revision)
    elif isinstance(error, WordingRefused):
        panel = replace(panel, field=error.field)
    return replace(panel, problem=str(error), text=text, note=note, author=author)
