"""Reads and adds label revisions; the history is append-only."""

import datetime
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from app.database.tables import Label
from app.errors import ReaderError
from app.labels.wording import folded, label_text, note_text


@dataclass(frozen=True)
class LabelTarget:
    """The feature that a label describes."""

    run: str
    feature: int
    content_hash: str
    """Hash of the feature's decoder directions."""


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
    """The older revision that this one restores, if any."""
    created_at: datetime.datetime


class LabelConflict(ReaderError):
    """The author saved a newer revision after opening the form; carries both texts."""

    status = 409
    title = "Saved elsewhere meanwhile"

    def __init__(self, latest: Revision | None, *, text: str, note: str) -> None:
        super().__init__(
            "You saved this label somewhere else after opening this form, so nothing was overwritten.",
            remedy="Compare both texts and save again the one you want to keep; the other stays in the history.",
        )
        self.latest = latest
        """The newer revision; None when the form claims one that does not exist."""
        self.text, self.note = text, note


def current_labels(session: Session, run: str, feature: int) -> list[Revision]:
    """Every author's current label of a feature, ordered by author; withdrawn ones are left out."""
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
    # Selects columns, not ORM objects: the result is read-only, and building objects would slow the page.
    columns = (Label.revision, Label.author, Label.text, Label.note, Label.withdrawn, Label.restores, Label.created_at)
    query = sa.select(Label.feature, *columns).where(Label.run == run, Label.feature.in_(features))
    found: dict[int, list[Revision]] = {feature: [] for feature in features}
    for row in session.execute(query.order_by(Label.created_at.desc(), Label.id.desc())):
        found[row.feature].append(Revision(*row[1:]))
    return found


def current(revisions: Iterable[Revision]) -> list[Revision]:
    """Every author's current label, ordered by author; withdrawn ones are left out."""
    newest: dict[str, Revision] = {}
    for each in revisions:
        if each.author not in newest or each.revision > newest[each.author].revision:
            newest[each.author] = each
    return [newest[author] for author in sorted(newest) if not newest[author].withdrawn]


def save_label(session: Session, target: LabelTarget, author: str, *, text: str, note: str, based_on: int) -> Revision:
    """Add a revision; `based_on` is the revision that the person saw, 0 for none.

    Saving the current text again adds nothing. Raises WordingRefused for text that cannot be stored, and
    LabelConflict when the author's newest revision is not `based_on`.
    """
    text, note = label_text(text), note_text(note)
    latest = own_label(session, target.run, target.feature, author)
    if latest is not None and (latest.text, latest.note, latest.withdrawn) == (text, note, False):
        return latest
    return _add(session, target, author, _Content(text, note), based_on=based_on)


def withdraw_label(session: Session, target: LabelTarget, author: str, *, based_on: int) -> Revision:
    """Withdraw the author's label; its history stays. Raises LabelConflict as `save_label` does."""
    return _add(session, target, author, _Content("", "", withdrawn=True), based_on=based_on)


def restore_label(session: Session, target: LabelTarget, author: str, *, revision: int, based_on: int) -> Revision:
    """Add a revision that repeats an older one of the author's.

    Raises LabelConflict as `save_label` does, and ReaderError when there is no such revision to restore.
    """
    query = sa.select(Label).where(Label.run == target.run, Label.feature == target.feature, Label.author == author)
    old = session.scalars(query.where(Label.revision == revision, ~Label.withdrawn)).first()
    if old is None:
        raise ReaderError(f"You have no revision {revision} to restore.", remedy="Choose one from the history.")
    return _add(session, target, author, _Content(old.text, old.note, restores=revision), based_on=based_on)


def features_matching(session: Session, run: str, query: str) -> set[int]:
    """Features of a run with a current label whose text or note contains every word of the query; ignores case.

    An empty query gives every labelled feature.
    """
    newest = _newest().where(Label.run == run).subquery()
    label = aliased(Label, newest)
    wanted = [label.folded.contains(word, autoescape=True) for word in folded(query).split()]
    return set(session.scalars(sa.select(label.feature).where(~label.withdrawn, *wanted)))


def latest_labels(session: Session, run: str, features: Collection[int]) -> dict[int, str]:
    """The most recent current label of each of these features that has one."""
    newest = _newest().where(Label.run == run, Label.feature.in_(features)).subquery()
    label = aliased(Label, newest)
    rows = session.scalars(sa.select(label).where(~label.withdrawn).order_by(label.created_at, label.id))
    return {row.feature: row.text for row in rows}


@dataclass(frozen=True)
class _Content:
    text: str
    note: str
    withdrawn: bool = False
    restores: int | None = None


def _add(session: Session, target: LabelTarget, author: str, words: _Content, *, based_on: int) -> Revision:
    """Add the revision after `based_on`; the table's unique key detects a concurrent save. Raises LabelConflict."""
    row = Label(
        run=target.run,
        feature=target.feature,
        content_hash=target.content_hash,
        author=author,
        revision=based_on + 1,
        text=words.text,
        note=words.note,
        folded=folded(f"{words.text}\n{words.note}"),
        withdrawn=words.withdrawn,
        restores=words.restores,
        created_at=datetime.datetime.now(datetime.UTC),
    )
    latest = own_label(session, target.run, target.feature, author)
    if (latest.revision if latest else 0) != based_on:
        raise LabelConflict(latest, text=words.text, note=words.note)
    try:
        with session.begin_nested():
            session.add(row)
    except sa.exc.IntegrityError:
        latest = own_label(session, target.run, target.feature, author)
        raise LabelConflict(latest, text=words.text, note=words.note) from None
    return _revision(row)


def _newest() -> sa.Select[Label]:
    """Select the newest revision of every author and feature."""
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
