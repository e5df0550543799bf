"""Reads and adds label revisions; the history is append-only."""

import datetime
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from app.database.tables import Label
from app.errors import ReaderError
from app.labels.wording import folded, label_text, note_text

IN_A_QUERY = 1000
"""Features that are named one by one in a query; beyond that the whole run is read."""


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


@dataclass(frozen=True)
class LabelOfSame:
    """A current label of the same feature in another run, or at another place of this one."""

    run: str
    feature: int
    author: str
    text: str


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


@dataclass(frozen=True)
class LabelChange:
    """What an author does with their label of a feature."""

    author: str
    based_on: int
    """The author's revision that was seen; 0 for none."""
    action: Literal["save", "withdraw", "restore"] = "save"
    text: str = ""
    note: str = ""
    restore: int = 0
    """The revision to bring back."""


def current_labels(session: Session, run: str, feature: int, *, limit: int | None = None) -> list[Revision]:
    """Every author's current label of a feature, ordered by author; withdrawn ones are left out."""
    query = sa.select(Label).where(Label.run == run, Label.feature == feature, _is_newest(), ~Label.withdrawn)
    return [_revision(row) for row in session.scalars(query.order_by(Label.author).limit(limit))]


def count_current(session: Session, run: str, feature: int) -> int:
    """Authors with a current label of a feature."""
    query = sa.select(sa.func.count()).where(Label.run == run, Label.feature == feature, _is_newest(), ~Label.withdrawn)
    return session.scalars(query).one()


def labels_of_same(session: Session, target: LabelTarget, *, limit: int) -> list[LabelOfSame]:
    """Current labels that other runs have of the feature with this hash, newest first."""
    same = sa.and_(Label.content_hash == target.content_hash, _is_newest(), ~Label.withdrawn)
    elsewhere = sa.or_(Label.run != target.run, Label.feature != target.feature)
    query = sa.select(Label).where(same, elsewhere).order_by(Label.created_at.desc(), Label.id.desc()).limit(limit)
    return [LabelOfSame(row.run, row.feature, row.author, row.text) for row in session.scalars(query)]


def own_label(session: Session, run: str, feature: int, author: str) -> Revision | None:
    """The author's newest revision, withdrawn or not; None if there never was one."""
    query = sa.select(Label).where(Label.run == run, Label.feature == feature, Label.author == author)
    row = session.scalars(query.order_by(Label.revision.desc()).limit(1)).first()
    return _revision(row) if row else None


def history(session: Session, run: str, feature: int, *, limit: int | None = None, offset: int = 0) -> list[Revision]:
    """Revisions of every author, newest first."""
    query = sa.select(Label).where(Label.run == run, Label.feature == feature)
    query = query.order_by(Label.created_at.desc(), Label.id.desc()).limit(limit).offset(offset)
    return [_revision(row) for row in session.scalars(query)]


def count_revisions(session: Session, run: str, feature: int) -> int:
    """Revisions of every author."""
    return session.scalars(sa.select(sa.func.count()).where(Label.run == run, Label.feature == feature)).one()


def change_label(session: Session, target: LabelTarget, change: LabelChange) -> Revision:
    """Save, withdraw or restore a label. Raises what these three do."""
    author, based_on = change.author, change.based_on
    if change.action == "withdraw":
        return withdraw_label(session, target, author, based_on=based_on)
    if change.action == "restore":
        return restore_label(session, target, author, revision=change.restore, based_on=based_on)
    return save_label(session, target, author, text=change.text, note=change.note, based_on=based_on)


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
    """Withdraw the author's label; its history stays.

    Raises LabelConflict as `save_label` does, and ReaderError when there is no label to withdraw.
    """
    if not based_on and own_label(session, target.run, target.feature, author) is None:
        raise ReaderError("You have no label of this feature to withdraw.", remedy="Write one first.")
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
    """Features of a run with a current label that has every word of the query in text, note or author; ignores case.

    An empty query gives every labelled feature.
    """
    words = folded(query).split()
    authors = session.scalars(sa.select(Label.author).where(Label.run == run).distinct()).all() if words else []
    by_author = {name: folded(name) for name in authors}
    wanted = [
        sa.or_(
            Label.folded.contains(word, autoescape=True),
            Label.author.in_([name for name, plain in by_author.items() if word in plain]),
        )
        for word in words
    ]
    return set(
        session.scalars(sa.select(Label.feature).where(Label.run == run, _is_newest(), ~Label.withdrawn, *wanted))
    )


def labels_state(session: Session, run: str) -> tuple[int, int]:
    """Revisions of a run's labels and the newest one's id: together they change with every revision."""
    # The id alone would not: a transaction that began earlier may end later.
    count, newest = session.execute(sa.select(sa.func.count(), sa.func.max(Label.id)).where(Label.run == run)).one()
    return int(count), int(newest or 0)


def newest_label(session: Session) -> int:
    """Id of the newest revision of any run; 0 without any."""
    return int(session.scalars(sa.select(sa.func.max(Label.id))).one() or 0)


def features_with_labels(session: Session, run: str) -> set[int]:
    """Features of a run with any revision, withdrawn ones included."""
    return set(session.scalars(sa.select(Label.feature).where(Label.run == run).distinct()))


def labelled_by(session: Session, run: str, author: str) -> set[int]:
    """Features of a run with a current label of this author's."""
    query = sa.select(Label.feature).where(Label.run == run, Label.author == author, _is_newest(), ~Label.withdrawn)
    return set(session.scalars(query))


def latest_labels(session: Session, run: str, features: Collection[int]) -> dict[int, str]:
    """The most recent current label of each of these features that has one."""
    newest_first = (Label.created_at.desc(), Label.id.desc())
    place = sa.func.row_number().over(partition_by=Label.feature, order_by=newest_first).label("place")
    ranked = sa.select(Label.feature, Label.text, place).where(Label.run == run, _is_newest(), ~Label.withdrawn)
    if len(features) <= IN_A_QUERY:
        ranked = ranked.where(Label.feature.in_(features))
    labels = ranked.subquery()
    wanted = set(features)
    rows = session.execute(sa.select(labels.c.feature, labels.c.text).where(labels.c.place == 1))
    return {feature: text for feature, text in rows if feature in wanted}


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


def _is_newest() -> sa.ColumnElement[bool]:
    """Whether a revision is its author's newest of the feature."""
    later = aliased(Label)
    replaced = sa.exists().where(
        later.run == Label.run,
        later.feature == Label.feature,
        later.author == Label.author,
        later.revision > Label.revision,
    )
    return ~replaced


def _revision(row: Label) -> Revision:
    return Revision(row.revision, row.author, row.text, row.note, row.withdrawn, row.restores, row.created_at)
