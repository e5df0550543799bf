"""What a page may ask for: the settings, the runs on this machine, the results of a run, and the labels."""

import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Query, Request
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.database.engine import transaction
from app.errors import ReaderError
from app.generations.live import LiveGenerations
from app.inference.client import Client
from app.labels.panel import LabelsPanel, panel_from_revisions
from app.labels.store import LabelTarget, current, features_matching, histories, latest_labels
from app.results.connection import Results, RunCatalog
from app.results.features.corpus_breakdown import usual_of
from app.results.features.feature_list import order_of
from app.results.features.query import FeatureQuery
from app.results.features.search import features_peaking_on, features_with_text, index_in
from app.results.owners import Owner, owners_of
from app.settings import Settings

log = logging.getLogger("crossdiff.explorer")

REMEMBERED_LISTS = 64
"""Lists per run whose order is kept, for walking through them."""

Found = TypeVar("Found")
Otherwise = TypeVar("Otherwise")


# What only hands something over is a coroutine: a plain function would cost a trip to another thread.
async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _library(request: Request) -> RunCatalog:
    library: RunCatalog = request.app.state.library
    return library


AppSettings = Annotated[Settings, Depends(_settings)]
Runs = Annotated[RunCatalog, Depends(_library)]


def _run_results(run: str, library: Runs) -> Iterator[Results]:
    results = library.results(run)
    try:
        yield results
    finally:
        results.cursor.close()


RunResults = Annotated[Results, Depends(_run_results)]
"""The results of `{run}` in the address, with a cursor of this request's own."""


@dataclass(frozen=True)
class LabelGlance:
    """Labels as the lists show them; a labels database that cannot be read never keeps results from being read."""

    engine: Engine

    def matching(self, run: str, text: str) -> set[int]:
        """Features with a current label that holds every word of the text."""
        return self._ask(lambda session: features_matching(session, run, text), set())

    def of(self, run: str, features: Collection[int]) -> dict[int, str]:
        """The newest current label of each of these features that has one."""
        return self._ask(lambda session: latest_labels(session, run, features), {})

    def can_be_read(self) -> bool:
        """Whether the labels database answers."""
        return self._ask(lambda session: latest_labels(session, "", [0]) is not None, False)

    def around(self, place: LabelTarget, name: str, others: Collection[int]) -> tuple[LabelsPanel | None, dict[int, str]]:
        """The labels part of a feature's page as somebody of this name finds it, and labels of it and of others.

        None and nothing when labels cannot be read.
        """
        found = self._ask(lambda session: histories(session, place.run, {place.feature, *others}), None)
        if found is None:
            return None, {}
        standing = {feature: current(revisions) for feature, revisions in found.items()}
        newest = {
            feature: max(labels, key=lambda one: one.created_at) for feature, labels in standing.items() if labels
        }
        names = {feature: label.text for feature, label in newest.items()}
        return panel_from_revisions(found[place.feature], place, name), names

    def _ask(self, question: Callable[[Session], Found], otherwise: Otherwise) -> Found | Otherwise:
        try:
            with transaction(self.engine) as session:
                return question(session)
        except (SQLAlchemyError, ReaderError, OSError) as error:
            log.warning("labels cannot be read: %s", error)
            return otherwise


async def _label_glance(request: Request) -> LabelGlance:
    return LabelGlance(_labels_engine(request))


def _labels_engine(request: Request) -> Engine:
    engine: Engine = request.app.state.labels
    return engine


async def _live(request: Request) -> LiveGenerations:
    live: LiveGenerations = request.app.state.live
    return live


async def _client(request: Request) -> Client:
    client: Client = request.app.state.client
    return client


async def _engine(request: Request) -> Engine:
    return _labels_engine(request)


LabelsEngine = Annotated[Engine, Depends(_engine)]
"""The database that people write to, for what opens its own transactions."""
Live = Annotated[LiveGenerations, Depends(_live)]
"""Generations under way in this process."""
Inference = Annotated[Client, Depends(_client)]
"""The way to the inference worker."""


LabelsAtAGlance = Annotated[LabelGlance, Depends(_label_glance)]


@dataclass(frozen=True)
class View:
    """A run as one request looks at it: its results, the list the reader came from, and the labels."""

    run: str
    results: Results
    library: RunCatalog
    listing: FeatureQuery
    labels: LabelGlance

    @property
    def owners(self) -> dict[str, Owner]:
        """Every owner of features in the run."""
        return self.library.remember(self.run, "owners", owners_of)

    @property
    def usual(self) -> dict[str, dict[str, float]]:
        """How much of the text is of each corpus part and language."""
        return self.library.remember(self.run, "usual", usual_of)

    def matching(self) -> set[int] | None:
        """Features that the list's text matches; None when it has no text."""
        text = self.listing.q.strip()
        if not text:
            return None
        places: dict[str, Callable[[], set[int]]] = {
            "labels": lambda: self.labels.matching(self.run, text),
            "contexts": lambda: features_with_text(self.results, text),
            "peaks": lambda: features_peaking_on(self.library, self.run, text),
        }
        if self.listing.within:
            return places[self.listing.within]()
        return index_in(self.results, text).union(*(look() for look in places.values()))

    def order(self) -> Sequence[int]:
        """Indexes of the features in the list the reader came from; lists without text are remembered."""
        found = self.matching()
        if found is not None:
            return order_of(self.results, self.listing, found)
        orders: OrderedDict[tuple[tuple[str, str], ...], Sequence[int]]
        orders = self.library.remember(self.run, "orders", lambda _: OrderedDict())
        key = tuple(self.listing.pairs(page=1))
        if key not in orders:
            orders[key] = array("i", order_of(self.results, self.listing, None))
        if len(orders) > REMEMBERED_LISTS:
            orders.popitem(last=False)
        return orders[key]


async def _view(
    run: str, results: RunResults, library: Runs, listing: Annotated[FeatureQuery, Query()], labels: LabelsAtAGlance
) -> View:
    return View(run, results, library, listing, labels)


RunView = Annotated[View, Depends(_view)]


def _reading(request: Request) -> Iterator[Session]:
    with transaction(_labels_engine(request)) as session:
        yield session


def _writing(request: Request) -> Iterator[Session]:
    with transaction(_labels_engine(request), writing=True) as session:
        yield session


LabelsToRead = Annotated[Session, Depends(_reading, scope="function")]
"""One transaction that only reads."""
LabelsToWrite = Annotated[Session, Depends(_writing, scope="function")]
"""One transaction, committed before the answer leaves."""
