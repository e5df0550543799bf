"""Reads labels for pages of results. What people wrote about a run is kept until somebody writes again."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database.engine import transaction
from app.errors import ReaderError
from app.labels.panel import LabelsPanel, empty_panel, labels_panel
from app.labels.store import (
    LabelTarget,
    features_matching,
    features_with_labels,
    labels_state,
    latest_labels,
    newest_label,
)
from app.results.once import Once

log = logging.getLogger("crossdiff.explorer")

MOST_KEPT = 20_000
"""Revisions of a run up to which its labels are kept in memory."""
KEPT_RUNS = 32
"""Runs whose labels are kept."""

Value = TypeVar("Value")
Default = TypeVar("Default")


@dataclass(frozen=True)
class RunLabels:
    """Labels of a run at one state."""

    newest: dict[int, str]
    """The most recent current label of each feature that has one."""
    touched: frozenset[int]
    """Features that anybody ever wrote about."""


@dataclass(frozen=True)
class LabelReader:
    """Reads labels; an unreadable database yields none instead of an error. Safe to share between threads."""

    engine: Engine
    kept: Once[tuple[str, str]] = field(default_factory=lambda: Once(KEPT_RUNS))
    """Labels by run and state."""

    def state(self, run: str) -> str:
        """A text that changes whenever a label of the run does; empty while labels cannot be read."""
        count, newest = self._query(lambda session: labels_state(session, run), (-1, 0))
        return "" if count < 0 else f"{count}.{newest}"

    def newest(self) -> int:
        """A number that changes when a label of any run does: a feature's page shows those of the same elsewhere."""
        return self._query(newest_label, 0)

    def matching(self, run: str, text: str) -> set[int]:
        """Features with a current label that has every word of the text, its author's name included."""
        return self._query(lambda session: features_matching(session, run, text), set())

    def latest(self, run: str, features: Collection[int]) -> dict[int, str]:
        """The newest current label of each of these features that has one."""
        labels = self._of_run(run)
        if labels is None:
            return self._query(lambda session: latest_labels(session, run, features), {})
        return {feature: labels.newest[feature] for feature in features if feature in labels.newest}

    def can_be_read(self) -> bool:
        """Whether the labels database responds."""
        return self._query(lambda session: latest_labels(session, "", [0]) is not None, False)

    def panel_and_names(
        self, target: LabelTarget, name: str, others: Collection[int]
    ) -> tuple[LabelsPanel | None, dict[int, str]]:
        """The labels panel of a feature for an author of this name, and newest labels of it and of others.

        (None, {}) when labels cannot be read.
        """
        wanted = {target.feature, *others}
        labels = self._of_run(target.run)
        if labels is not None and target.feature not in labels.touched:
            panel = self._query(lambda session: empty_panel(session, target, name), None)
            return panel, {} if panel is None else self.latest(target.run, wanted)

        def read(session: Session) -> tuple[LabelsPanel | None, dict[int, str]]:
            return labels_panel(session, target, name), latest_labels(session, target.run, wanted)

        return self._query(read, (None, {}))

    def _of_run(self, run: str) -> RunLabels | None:
        """All labels of a run; None when they are too many, or cannot be read."""
        state = self.state(run)
        if not state or int(state.partition(".")[0]) > MOST_KEPT:
            return None

        def read(session: Session) -> RunLabels:
            touched = features_with_labels(session, run)
            return RunLabels(latest_labels(session, run, touched), frozenset(touched))

        def read_now() -> RunLabels:
            with transaction(self.engine) as session:
                return read(session)

        try:
            return self.kept.get((run, state), read_now)
        except (SQLAlchemyError, ReaderError, OSError):
            return None

    def _query(self, read: Callable[[Session], Value], default: Default) -> Value | Default:
        try:
            with transaction(self.engine) as session:
                return read(session)
        except (SQLAlchemyError, ReaderError, OSError) as error:
            log.warning("labels cannot be read: %s", str(error))  # the text alone: the error holds its connection
            return default
