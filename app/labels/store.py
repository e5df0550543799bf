"""Store: every question to the labels, and every way to add one. Nothing is ever changed or removed."""

import datetime
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from app.database.tables import Label
from app.errors import ReaderError
from app.labels.wording import folded, label_text, note_text


@dataclass(frozen=True)
class Place:
    """Which feature a label is about."""

    run: str
    feature: int
    content_hash: str
    """Of the feature's decoder directions."""


@dataclass(frozen=True)
class Revision:
    """One state of one author's label."""

    revision: int
    """1 for the author's first, then counting up."""
    author: str
    text: str
    note: str
    withdrawn: bool
    restores: int | None
    """The revision it brought back, if it did."""
    created_at: datetime.datetime


class LabelConflict(ReaderError):
    """The author saved this label somewhere else since the form was opened; both texts are here."""

    status = 409
    title = "Saved elsewhere meanwhile"

    def __init__(self, latest: Revision | None, *, text: str, note: str) -> None:
        super().__init__(
            "You saved this label somewhere else after opening this form, so nothing was overwritten.",
            remedy="Compare both texts and save again the one that should stand; the other stays in the history.",
        )
        self.latest = latest
        """What was saved meanwhile."""
        self.text, self.note = text, note


def current_labels(session: Session, run: str, feature: int) -> list[Revision]:
    """Every author's label of a feature as it stands, oldest author first; withdrawn ones are left out."""
    newest = _newest().where(Label.run == run, Label.feature == feature).subquery()
    label = aliased(Label, newest)
    rows = session.scalars(sa.select(label).where(~label.withdrawn).order_by(label.author))
    return [_revision(row) for row in rows]


def own_label(session: Session, run: str, feature: int, author: str) -> Revision | None:
    """The author's newest revision, withdrawn or not; None if there never was one."""
    query = sa.select(Label).where(Label.run == run, Label.feature == feature, Label.author == author)
    row = session.scalars(query.order_by(Label.revision.desc()).limit(1)).first()
    return _revision(row) if row else None


def history(session: Session, run: str, feature: int) -> list[Revision]:
    """Every revision of every author, newest first."""
    query = sa.select(Label).where(Label.run == run, Label.feature == feature)
    return [_revision(row) for row in session.scalars(query.order_by(Label.created_at.desc(), Label.id.desc()))]


def histories(session: Session, run: str, features: Collection[int]) -> dict[int, list[Revision]]:
    """Every revision of each of these features, newest first; an empty list for those that have none."""
    # Columns instead of rows of the table: nothing is going to be changed, and a page waits for it.
    columns = (Label.revision, Label.author, Label.text, Label.note, Label.withdrawn, Label.restores, Label.created_at)
    query = sa.select(Label.feature, *columns).where(Label.run == run, Label.feature.in_(features))
    found: dict[int, list[Revision]] = {feature: [] for feature in features}
    for row in session.execute(query.order_by(Label.created_at.desc(), Label.id.desc())):
        found[row.feature].append(Revision(*row[1:]))
    return found


def current(revisions: Iterable[Revision]) -> list[Revision]:
    """Every author's label as it stands, by author; withdrawn ones are left out."""
    newest: dict[str, Revision] = {}
    for each in revisions:
        if each.author not in newest or each.revision > newest[each.author].revision:
            newest[each.author] = each
    return [newest[author] for author in sorted(newest) if not newest[author].withdrawn]


def save_label(session: Session, place: Place, author: str, *, text: str, note: str, based_on: int) -> Revision:
    """Add a revision; `based_on` is the revision that the person saw, 0 for none.

    Saving what stands already adds nothing. Raises WordingRefused for text that cannot be stored, and
    LabelConflict when the author's newest revision is another than the one the person saw.
    """
    text, note = label_text(text), note_text(note)
    latest = own_label(session, place.run, place.feature, author)
    if latest is not None and (latest.text, latest.note, latest.withdrawn) == (text, note, False):
        return latest
    return _add(session, place, author, _Words(text, note), based_on=based_on)


def withdraw_label(session: Session, place: Place, author: str, *, based_on: int) -> Revision:
    """Take the author's label back; its history stays. Raises LabelConflict as `save_label` does."""
    return _add(session, place, author, _Words("", "", withdrawn=True), based_on=based_on)


def restore_label(session: Session, place: Place, author: str, *, revision: int, based_on: int) -> Revision:
    """Make an older revision of the author's current again, as a new one.

    Raises LabelConflict as `save_label` does, and ReaderError when there is no such revision to restore.
    """
    query = sa.select(Label).where(Label.run == place.run, Label.feature == place.feature, Label.author == author)
    old = session.scalars(query.where(Label.revision == revision, ~Label.withdrawn)).first()
    if old is None:
        raise ReaderError(f"Revision {revision} of yours is not there.", remedy="Choose one from the history.")
    return _add(session, place, author, _Words(old.text, old.note, restores=revision), based_on=based_on)


def features_matching(session: Session, run: str, query: str) -> set[int]:
    """Features of a run with a current label whose text or note holds every word asked for; case does not matter.

    An empty query gives every labelled feature.
    """
    newest = _newest().where(Label.run == run).subquery()
    label = aliased(Label, newest)
    wanted = [label.folded.contains(word, autoescape=True) for word in folded(query).split()]
    return set(session.scalars(sa.select(label.feature).where(~label.withdrawn, *wanted)))


def labels_of(session: Session, run: str, features: Collection[int]) -> dict[int, str]:
    """The most recent current label of each of these features that has one."""
    newest = _newest().where(Label.run == run, Label.feature.in_(features)).subquery()
    label = aliased(Label, newest)
    rows = session.scalars(sa.select(label).where(~label.withdrawn).order_by(label.created_at, label.id))
    return {row.feature: row.text for row in rows}


@dataclass(frozen=True)
class _Words:
    text: str
    note: str
    withdrawn: bool = False
    restores: int | None = None


def _add(session: Session, place: Place, author: str, words: _Words, *, based_on: int) -> Revision:
    """Add the revision after `based_on`, unless somebody did; the table's unique key has the last word."""
    row = Label(
        run=place.run,
        feature=place.feature,
        content_hash=place.content_hash,
        author=author,
        revision=based_on + 1,
        text=words.text,
        note=words.note,
        folded=folded(f"{words.text}\n{words.note}"),
        withdrawn=words.withdrawn,
        restores=words.restores,
        created_at=datetime.datetime.now(datetime.UTC),
    )
    latest = own_label(session, place.run, place.feature, author)
    if (latest.revision if latest else 0) != based_on:
        raise LabelConflict(latest, text=words.text, note=words.note)
    try:
        with session.begin_nested():
            session.add(row)
    except sa.exc.IntegrityError:
        latest = own_label(session, place.run, place.feature, author)
        raise LabelConflict(latest, text=words.text, note=words.note) from None
    return _revision(row)


def _newest() -> sa.Select[Label]:
    """Rows that no later revision of the same author replaces."""
    later = aliased(Label)
    replaced = sa.exists().where(
        later.run == Label.run,
        later.feature == Label.feature,
        later.author == Label.author,
        later.revision > Label.revision,
    )
    return sa.select(Label).where(~replaced)


def _revision(row: Label) -> Revision:
    return Revision(row.revision, row.author, row.text, row.note, row.withdrawn, row.restores, row.created_at)
